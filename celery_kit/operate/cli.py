"""The commands behind `make`: `python -m celery_kit.operate.cli COMMAND`. Options are given by name or by the environment."""

import json
import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import click
from dotenv import dotenv_values, load_dotenv

from celery_kit.base.choices import TASK_TIME_LIMIT
from celery_kit.base.facts import PATIENCE, Member, process
from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.brokers.contract import ROLES
from celery_kit.operate import backup, deploy, groups, plan, tasks
from celery_kit.operate.current import IN_CONTAINERS, Stack, groups_of, join, look, meant, running_stack, stack_of
from celery_kit.operate.migrate import migrate
from celery_kit.operate.options import (
    backend_option,
    beats_option,
    broker_option,
    check,
    codebase_options,
    json_option,
    pool_option,
    python_option,
    typed,
    wanted,
)
from celery_kit.operate.stacks import certificates, passwords
from celery_kit.operate.stacks import codebase as codebases
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.docker import EngineSilentError, others
from celery_kit.operate.stacks.images import CODE, KIT, Code
from celery_kit.operate.stacks.local import Local
from celery_kit.operate.stacks.ports import published_ports
from celery_kit.operate.stacks.pythons import on_this_machine
from celery_kit.operate.stacks.scaling import Containers
from celery_kit.pools.table import POOLS
from celery_kit.profile import limits
from celery_kit.results import BACKENDS

if TYPE_CHECKING:
    from celery_kit.operate.look.status import Snapshot


def _on_this_machine() -> None:
    """Refuse a PYTHON in the environment that is not this process' version. One in .env applies only to containers."""
    if os.environ.get("PYTHON") != dotenv_values(ROOT / ".env").get("PYTHON"):
        on_this_machine(os.environ)


@click.group()
def cli() -> None:
    """celery-kit: one Celery task codebase, any broker, any pool."""
    load_dotenv(ROOT / ".env")


@cli.command()
@broker_option
@pool_option
@backend_option
@python_option
@click.option("--scale", type=click.IntRange(1, 100), default=1, envvar="SCALE", show_envvar=True, help="how many workers")
@beats_option
@click.option("--monitor", is_flag=True, envvar="MONITOR", help="start Flower, metrics and alerts too")
@click.option("--grafana", is_flag=True, envvar="GRAFANA", help="like --monitor, and Grafana with a dashboard")
@click.option(
    "--queues",
    envvar="QUEUES",
    help="the queues that the workers consume, between commas; default: those of the app's settings",
)
@click.option("--secure", envvar="SECURE", help="1: TLS between all parts; mutual: with certificates on both sides")
@click.option("--pins", envvar="PINS", default="", help="run the images that a file of 'make push' names; nothing is built")
@codebase_options
def up(
    broker: str,
    pool: str,
    backend: str,
    scale: int,
    monitor: bool,
    grafana: bool,
    secure: str | None,
    pins: str,
    queues: str | None,
    codebase: codebases.Codebase | None,
) -> None:
    """Start a stack and wait until it is healthy."""
    table, workers = wanted(pool, scale, queues, codebase)
    stack = stack_of(broker)
    for group in workers:
        check(broker, group, backend, 0 if codebase and isinstance(stack, Local) else TASK_TIME_LIMIT)
    profiles = ["monitor"] * (monitor or grafana) + ["grafana"] * grafana
    contained = [f"{name.upper()}=1" for name in profiles]
    contained += [f"{name}={given}" for name, given in (("SECURE", secure), ("PINS", pins)) if given]
    contained += [f"version of group {one.name}" for one in workers if one.version]
    if not isinstance(stack, Compose):
        if contained:
            refuse(f"{contained[-1]} needs a stack of containers: {' or '.join(f'BROKER={name}' for name in IN_CONTAINERS)}")
        _on_this_machine()
    if line := table.overruled(typed("pool", "scale", "queues")):
        click.echo(line, err=True)
    options = (profiles, pins) if isinstance(stack, Compose) else ()
    started = stack.up(workers, backend, codebase, *options)
    pools = ", ".join(f"{one.name} on {one.pool}" if one.name else one.pool for one in workers)
    click.echo(f"\n{broker}, {pools}, results by {backend}{f', {codebase.app}' if codebase else ''}: running and healthy")
    click.echo("\n".join(f"  {place}" for place in started.places))
    click.echo("".join(f"Settings: {line}\n" for line in started.about.contradictions), nl=False)
    if table.groups:
        said = groups.notes(table, started.about.queues, started.about.limited, contained=isinstance(stack, Compose))
        click.echo("".join(f"Groups: {line}\n" for line in said), nl=False)
    for one in dict.fromkeys(one.pool for one in workers):
        rows = limits(BROKERS[broker], BACKENDS[backend], POOLS[one])
        if cannot := sorted(name for name, limit in rows.items() if limit.kind == "cannot"):
            where = f"on {one}" if table.groups else "here"
            click.echo(
                f"Celery cannot do {where}: {', '.join(cannot).replace('_', ' ')} (docs/matrix.md: what happens instead)"
            )
    result = "make result ID=…" if BACKENDS[backend].read_elsewhere else "(results: send with WAIT=10)"
    task = 'mail.send_email ARGS=\'["you@example.com", "hello"]\''
    if codebase:
        task = f"{next(iter(started.about.tasks), 'NAME')} ARGS='[]'"
    click.echo(f"""Next:
  make send TASK={task}    then  {result}
  make status    make logs    make urls    make down""")


@cli.command()
@click.option("--volumes", is_flag=True, envvar="VOLUMES", help="delete the stack's data too")
@click.option("--yes", is_flag=True, envvar="YES", help="delete data without asking")
def down(volumes: bool, yes: bool) -> None:
    """Stop the running stack of this checkout. Its data stays, unless VOLUMES=1."""
    done = [_down(stack, volumes, yes) for stack in meant() if stack.exists()]
    if volumes and not done:
        done = [_down(stack, volumes, yes) for stack in meant() if stack.data()]
    if not done:
        click.echo(f"no stack runs{(theirs := others()) and f'. Not of this checkout: {theirs}'}")


def _down(stack: Stack, volumes: bool, yes: bool) -> bool:
    """Take a stack down and print what was done. Returns True."""
    data = stack.data() if volumes else []
    if data and not yes and sys.stdin.isatty() and not click.confirm(f"Delete all data in {', '.join(data)}?", err=True):
        refuse("nothing was stopped, nothing was deleted")
    click.echo(stack.down(volumes))
    return True


@cli.command()
@json_option
def status(as_json: bool) -> None:
    """Show the running stack's broker, queues, workers and beat."""
    stack = running_stack()
    inspected = join(stack)
    from celery_kit.operate.look import status  # not before the environment names the stack

    found = look(stack, inspected, stack.members(inspected), PATIENCE)
    click.echo(json.dumps(status.document(found)) if as_json else "\n".join(status.lines(found)))


@cli.command()
@click.option("--role", type=click.Choice(ROLES), default="producer", envvar="ROLE", help="whose; default: a producer's")
@json_option
def urls(role: str, as_json: bool) -> None:
    """Print the addresses of the running stack's servers and of its mail catcher on this machine, with their passwords."""
    inspected = join(stack := running_stack(), role)
    servers = {name: os.environ[name] for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")}
    found = {**servers, **stack.passwords(inspected)}
    click.echo(json.dumps(found) if as_json else "\n".join(f"{name}={value}" for name, value in found.items()))


@cli.command("certificates")
@click.option("--renew", type=click.Choice(["1", "ca"]), envvar="RENEW", help="new ones now; ca: with a new authority")
def certify(renew: str | None) -> None:
    """Make the certificates of stacks with SECURE=1, or renew them; running servers take them at once."""
    certificates.say(certificates.renew(renew == "ca") if renew else certificates.ensure())
    if isinstance(stack := next((one for one in meant() if one.running()), None), Compose):
        click.echo("".join(f"{name} uses its new certificate\n" for name in stack.reload()), nl=False)


@cli.command("passwords")
@click.option(
    "--renew", type=click.Choice([*passwords.RENEWALS]), envvar="RENEW", help="1: new ones, beside the former; end: end those"
)
def renew_passwords(renew: str | None) -> None:
    """Renew the passwords of the running stack's servers; nothing is restarted. Without RENEW, say who has which."""
    if not isinstance(stack := running_stack(), Compose):
        refuse("the embedded stack has no passwords: they are those of stacks of containers")
    if renew:
        click.echo("\n".join(passwords.renew(stack.inspected(), renew)))
    else:
        click.echo("\n".join(f"{role:<9} 'make urls ROLE={role}' shows them" for role in ROLES))
        click.echo("RENEW=1 makes new ones beside these, RENEW=end ends the former")


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Check the machine and the running stack, and print each fault and how to fix it."""
    from celery_kit.operate.look.doctor import Scene, show

    try:
        stack = next((one for one in meant() if one.running()), None)
    except EngineSilentError:
        stack = None  # which is found below
    if stack is None:
        folder = ROOT / (os.environ.get("SOURCE") or "app")
        sys.exit(show(Scene(stack=False, ports=published_ports(), folder=folder), as_json))
    inspected = join(stack)
    containers = inspected if isinstance(stack, Compose) else []
    codebase = stack.codebase(inspected)
    code = (Code(codebase.source, "/srv/source"), KIT) if codebase else CODE

    def taken(members: list[Member], patience: float) -> "Snapshot":
        return look(stack, inspected, members, patience)

    folder = codebases.code_of(codebase)
    sys.exit(show(Scene(stack.members(inspected), containers, look=taken, code=code, folder=folder), as_json))


@cli.command()
@click.option(
    "--every", type=click.FloatRange(0.2, 60), default=2, envvar="EVERY", show_envvar=True, help="seconds between two looks"
)
def top(every: float) -> None:
    """Show the status again and again, until Ctrl-C."""
    stack = running_stack()
    join(stack)
    from celery_kit.operate.look import top  # not before the environment names the stack

    top.show(every, lambda: _now(stack))


@cli.command()
@click.option(
    "--every", type=click.FloatRange(0.2, 60), default=5, envvar="EVERY", show_envvar=True, help="seconds between two looks"
)
@click.option(
    "--cooldown", type=click.FloatRange(1, 86_400), default=60, envvar="COOLDOWN", show_envvar=True,
    help="seconds for which fewer workers must have been enough, before one is stopped",
)  # fmt: skip
def balance(every: float, cooldown: float) -> None:
    """Keep each worker group between its min and max workers, by how long tasks wait, until Ctrl-C."""
    if not isinstance(stack := running_stack(), Compose):
        refuse("the embedded stack has as many workers as it was started with: 'make balance' is for stacks of containers")
    join(stack)
    from celery_kit.operate import balance as balancing

    balancing.run(stack, Containers(stack.project, stack.inspected), lambda: _now(stack), every, cooldown)


def _now(stack: Stack) -> "Snapshot":
    """A snapshot of a stack, with the processes that it has now."""
    inspected = stack.inspected()
    return look(stack, inspected, stack.members(inspected), PATIENCE)


@cli.command()
@click.option("--follow", is_flag=True, envvar="FOLLOW", help="follow until Ctrl-C")
@click.option("--group", envvar="GROUP", help="of one worker group alone")
def logs(follow: bool, group: str | None) -> None:
    """Show the running stack's logs."""
    stack = running_stack()
    stack.logs(follow, groups_of(stack, group)[group] if group else None)


@cli.command()
@json_option
def ps(as_json: bool) -> None:
    """Show the running stack's processes or containers."""
    stack = running_stack()
    if not as_json:
        stack.ps()
        return
    inspected = stack.inspected()
    named = {str(one.get("Name") or one["name"]).lstrip("/"): one for one in inspected}
    found = zip(named, stack.members([*named.values()]), strict=True)
    click.echo(json.dumps({"processes": [{"name": name, **process(one)} for name, one in found]}))


@cli.command()
@pool_option
@backend_option
def demo(pool: str, backend: str) -> None:
    """Run the sample work on the embedded broker."""
    _on_this_machine()
    from celery_kit.operate.stacks.demo import show  # only here: it needs rich and Pillow

    show(pool, backend)


@cli.command()
def dev() -> None:
    """Run a worker of the running stack on this machine, and restart it when code changes. Ctrl-C stops it."""
    given, stack = {"POOL": os.environ.get("POOL"), "CELERY_WORKER_QUEUES": os.environ.get("QUEUES")}, running_stack()
    inspected = join(stack, "worker")
    os.environ.update({name: value for name, value in given.items() if value})
    from celery_kit.operate.stacks.dev import main as develop

    develop(codebase=stack.codebase(inspected))


for command in (*deploy.COMMANDS, *tasks.COMMANDS, *backup.COMMANDS, *plan.COMMANDS, migrate):
    cli.add_command(command)


def _end(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Run a command. Exits with code 2 if it is refused, and with 130 at Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop what the command has started, like Ctrl-C
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        refuse(error.format_message())
    except EngineSilentError as error:
        refuse(f"{error}; 'make doctor' says how to fix it")
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader has closed the pipe, as in make logs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
