"""The commands on tasks and queues. A process of the running stack carries them out: it has the codebase and the accounts."""

import sys
from typing import NoReturn

import click

from celery_kit.base.refusals import refuse
from celery_kit.operate.arguments import OF_DEAD
from celery_kit.operate.current import groups_of, join, running_stack
from celery_kit.operate.groups import queues_of
from celery_kit.operate.options import json_option


def _run(role: str, *argv: str) -> NoReturn:
    """Run a module in the running stack, in a role, and exit with its exit code."""
    sys.exit(running_stack().python(role, *argv).returncode)


@click.command()
@click.option("--task", envvar="TASK", help="the task's name, such as mail.send_email")
@click.option("--args", envvar="ARGS", default="[]", help="its arguments, a JSON array")
@click.option("--kwargs", envvar="KWARGS", default="{}", help="its keyword arguments, a JSON object")
@click.option("--countdown", type=float, envvar="COUNTDOWN", help="seconds before it runs")
@click.option("--wait", type=float, envvar="WAIT", help="seconds to wait for the result")
@json_option
def send(task: str | None, args: str, kwargs: str, countdown: float | None, wait: float | None, as_json: bool) -> None:
    """Send a task to the running stack; prints its id."""
    if not task:
        refuse('TASK is missing; for example: make send TASK=mail.send_email ARGS=\'["a@b.c", "hi"]\'')
    options = [("--countdown", countdown), ("--wait", wait)]
    flags = [f"{flag}={value}" for flag, value in options if value is not None] + ["--json"] * as_json
    _run("producer", "celery_kit.operate.look.send", *flags, "--", task, args, kwargs)


@click.command()
def forward() -> None:
    """Send what waits in the spool of the running stack (SPOOL)."""
    _run("producer", "celery_kit.operate.look.send", "forward")


@click.command()
@click.option("--id", "task_id", envvar="ID", help="the task's id")
@click.option("--wait", type=float, envvar="WAIT", help="seconds to wait for the result")
@click.option("--forget", is_flag=True, envvar="FORGET", help="delete the result")
@click.option("--watch", is_flag=True, envvar="WATCH", help="follow the task until it ends, with a progress bar")
@json_option
def result(task_id: str | None, wait: float | None, forget: bool, watch: bool, as_json: bool) -> None:
    """Show a task's state and result, by its id."""
    if not task_id:
        refuse("ID is missing; for example: make result ID=the id that 'make send' printed")
    if watch and as_json:
        refuse("WATCH and JSON contradict each other; WAIT=10 waits, and JSON=1 prints the outcome")
    if watch:
        join(running_stack(), "producer")
        from celery_kit.operate.look import watch as watching

        sys.argv[1:] = [task_id]
        watching.main()
    flags = [*([f"--wait={wait}"] if wait is not None else []), *["--forget"] * forget, *["--json"] * as_json]
    _run("producer", "celery_kit.operate.look.result", *flags, "--", task_id)


@click.command(params=[click.Option([f"--{name}"], envvar=name.upper(), help=what) for name, what in OF_DEAD.items()])
@json_option
def dead(as_json: bool, **given: str | None) -> None:
    """List failed tasks and dead letters, with their reasons; RETRY= sends them back, DROP= deletes them."""
    flags = [f"--{name}={value}" for name, value in given.items() if value] + ["--json"] * as_json
    _run("operator", "celery_kit.operate.look.dead", *flags)


def _pause(word: str, queue: str | None, group: str | None, as_json: bool) -> NoReturn:
    """Pause or resume the queues that QUEUE names, or those of a worker group."""
    if bool(queue) == bool(group):
        refuse(f"give QUEUE or GROUP, one of them; for example: make {word} QUEUE=mail")
    stack = running_stack()
    known = groups_of(stack, group) if group else {one.name: one for one in stack.groups(stack.inspected())}
    named = known[group].queues if group else tuple(one.strip() for one in str(queue).split(",") if one.strip())
    if not named:
        refuse(f"QUEUE={queue} names no queue; for example: make {word} QUEUE=mail")
    for other in known.values():
        if word == "pause" and group and other.name != group and (shared := {*other.queues} & {*named}):
            click.echo(f"group {other.name} consumes {', '.join(sorted(shared))} too: it stops there as well", err=True)
    flags = [f"--known={','.join(queues_of(known.values()))}", *["--json"] * as_json]
    _run("operator", "celery_kit.operate.look.pause", *flags, "--", word, *named)


queue_option = click.option("--queue", envvar="QUEUE", help="a queue, or several between commas")
group_option = click.option("--group", envvar="GROUP", help="all queues of a worker group")


@click.command()
@queue_option
@group_option
@json_option
def pause(queue: str | None, group: str | None, as_json: bool) -> None:
    """Have no worker begin tasks of a queue, until it is resumed; survives restarts of everything."""
    _pause("pause", queue, group, as_json)


@click.command()
@queue_option
@group_option
@json_option
def resume(queue: str | None, group: str | None, as_json: bool) -> None:
    """Have workers consume a paused queue again."""
    _pause("resume", queue, group, as_json)


COMMANDS = (send, forward, result, dead, pause, resume)
