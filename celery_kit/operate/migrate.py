"""`make migrate FROM=… TO=…`: another broker takes over, with the tasks that wait, from stack to stack or by URLs."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import click
from celery import Celery

from celery_kit.base.refusals import choose, refuse
from celery_kit.brokers import BROKERS
from celery_kit.operate.current import IN_CONTAINERS, Stack
from celery_kit.operate.stacks.compose import Compose, project_name, stacks_of
from celery_kit.operate.stacks.local import Local
from celery_kit.results import room

if TYPE_CHECKING:
    from celery_kit.operate.look.migrate import Side

#: A role that may move messages, and one that may write results.
OPERATOR, ADMIN = "operator", "admin"


def _stack(what: str, broker: str) -> Stack:
    """The running stack of a broker. Refuses none, and several."""
    if not BROKERS[broker].compose_file:
        if not Local().running():
            refuse(f"{what}={broker}: no such stack runs; 'make up BROKER={broker}' starts it")
        return Local()
    found = stacks_of(broker)
    if not found:
        start = f"make up BROKER={broker} COMPOSE_PROJECT_NAME={project_name()}-{broker}"
        refuse(
            f"{what}={broker}: no such stack runs here; beside another one: {start} (and other ports: docs/change-broker.md)"
        )
    if len(found) > 1:
        refuse(
            f"{what}={broker}: several run: {', '.join(one.project for one in found)}; give URLs ('make urls ROLE=operator')"
        )
    return found[0]


def _side(what: str, given: str) -> tuple["Side", Stack | None]:
    from celery_kit.operate.look.migrate import Side, of_url

    if "://" in given:
        return of_url(what, given), None
    stack = _stack(what, given)
    environ = {**os.environ, **stack.environment(stack.inspected(), OPERATOR)}
    return Side(what, environ["CELERY_BROKER_URL"], environ), stack


@click.command()
@click.option("--from", "source", envvar="FROM", help=f"the broker that is left: {', '.join(IN_CONTAINERS)}, or a URL")
@click.option("--to", "target", envvar="TO", help="the broker that takes over")
@click.option("--only", envvar="ONLY", default="", help="only these queues, between commas; default: all")
def migrate(source: str | None, target: str | None, only: str) -> None:
    """Have another broker take over: move all messages to it, each once. Run it again to go on, or the other way round."""
    if not source or not target:
        refuse("FROM and TO are both needed; for example: make migrate FROM=redis TO=rabbitmq, or two URLs")
    for what, given in (("FROM", source), ("TO", target)):
        if "://" not in given:
            choose(what, given, BROKERS)
    if source == target:
        refuse("FROM and TO are the same; for another database or virtual host give URLs")
    (from_, former), (to, latter) = _side("FROM", source), _side("TO", target)
    from celery_kit.operate.look import migrate as moves  # not before the values are checked

    app = moves.app_of(to)
    moves.run(app, from_, to, [one for one in only.split(",") if one], lambda: _hand_over(app, former, latter))
    if isinstance(latter, Compose):
        click.echo(f"next: COMPOSE_PROJECT_NAME={latter.project} in .env; 'make migrate FROM={target} TO={source}' goes back")


def _hand_over(app: Celery, former: Stack | None, latter: Stack | None) -> None:
    """Stop what sends and runs tasks on the one stack, and start it on the other; then copy the results."""
    steps = [(former, "stop", "beat"), (latter, "start", "beat"), (latter, "start", "worker"), (former, "stop", "worker")]
    for stack, command, role in steps:
        if isinstance(stack, Compose) and (number := stack.turn(command, role)):
            done = {"stop": "stopped", "start": "started, or running"}[command]
            click.echo(f"{stack.project}: {number} {role}{'s' * (number > 1)} {done}")
    if former and latter and (copy := _copies(former, latter)):
        servers = [one.environment(one.inspected(), ADMIN)["CELERY_RESULT_BACKEND"] for one in (former, latter)]
        click.echo(f"results: {copy(app, *servers)} keys copied")


def _copies(former: Stack, latter: Stack) -> Callable[..., int] | None:
    """What copies the results of one stack to the other, where both store them on servers of one kind."""
    rows = [room(one.environment(one.inspected(), OPERATOR)["CELERY_RESULT_BACKEND"]) for one in (former, latter)]
    return rows[0].carry if rows[0] and rows[0] is rows[1] else None
