"""What several commands of `make` share: options, each given by name or by the environment, and the check of what was given."""

import os
from typing import Any

import click
from click.core import ParameterSource

from celery_kit.base.choices import beats
from celery_kit.base.refusals import refuse
from celery_kit.brokers import BROKERS
from celery_kit.operate import groups
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks import codebase as codebases
from celery_kit.operate.stacks.pythons import DEFAULT, PYTHONS, chosen
from celery_kit.pools.table import POOLS
from celery_kit.profile import Profile
from celery_kit.results import BACKENDS


def choice(name: str, values: dict[str, Any], default: str) -> Any:
    """A click option that takes one of the names in `values`, by `--name` or by the environment variable NAME."""
    return click.option(
        f"--{name}", type=click.Choice(list(values)), default=default, envvar=name.upper(), show_default=True, show_envvar=True
    )


#: Of each command that shows something: docs/json.md.
json_option = click.option(
    "--json", "as_json", is_flag=True, envvar="JSON", help="1: one JSON document on standard output (docs/json.md)"
)
broker_option = choice("broker", BROKERS, "embedded")
pool_option = choice("pool", POOLS, "prefork")
backend_option = choice("backend", BACKENDS, "redis")


def _python(context: click.Context, option: click.Parameter, given: str | None) -> None:
    os.environ |= {"PYTHON": given} if given else {}
    chosen(os.environ)


#: Its value is not passed on: image names depend on PYTHON in the environment (celery_kit/operate/stacks/images.py).
python_option = click.option(
    "--python", envvar="PYTHON", callback=_python, expose_value=False, help=f"of images: {', '.join(PYTHONS)}; else {DEFAULT}"
)


def _beats(context: click.Context, option: click.Parameter, given: str | None) -> None:
    os.environ |= {"BEATS": given} if given else {}
    beats(os.environ)


#: Its value is not passed on: the stacks' files and beat itself read BEATS.
beats_option = click.option(
    "--beats", envvar="BEATS", callback=_beats, expose_value=False, help="how many beats, of which one leads, 1 to 9; else 1"
)


def _codebase(context: click.Context, option: click.Parameter, given: str | None) -> codebases.Codebase | None:
    named = {"APP": given or "", **{name: context.params.pop(name, None) or "" for name in codebases.NOTED[1:]}}
    return codebases.chosen({name.upper(): value for name, value in named.items()})


def codebase_options(command: Any) -> Any:
    """Add the options for APP, SOURCE, REQUIREMENTS and ENV_FILE. The command gets `codebase`; None: the app in app/."""
    paths = (
        ("env_file", "a file with the variables that its code reads, one NAME=value a line"),
        ("requirements", "its requirements.txt"),
        ("source", "the folder that it is imported from"),
    )
    for name, what in paths:
        command = click.option(f"--{name.replace('_', '-')}", envvar=name.upper(), is_eager=True, help=what)(command)
    app = click.option("--app", "codebase", envvar="APP", callback=_codebase, help="your own Celery app, as module:app")
    return app(command)


def check(broker: str, group: Group, backend: str, limit: int) -> None:
    """Refuse what a group's workers would refuse, before anything starts. `limit`: as in Choices.from_environ."""
    if os.environ.get("SECURE") and not BROKERS[broker].has_tls:
        refuse(
            f"SECURE={os.environ['SECURE']}: the stack of BROKER={broker} has no TLS; leave it out, or choose another broker"
        )
    axes = {"BROKER": broker, "BACKEND": backend, **group.environ()}
    servers = {  # their addresses do not matter here
        "CELERY_BROKER_URL": f"{BROKERS[broker].schemes[0]}://",
        "CELERY_RESULT_BACKEND": f"{BACKENDS[backend].schemes[0]}://",
    }
    Profile.from_environ({**servers, **{name: value for name, value in os.environ.items() if value}, **axes}, limit)


def wanted(
    pool: str, scale: int, queues: str | None, codebase: codebases.Codebase | None
) -> tuple[groups.Table, tuple[Group, ...]]:
    """The table of groups, and the groups that a stack gets: the table's, or one as POOL, SCALE and QUEUES describe it."""
    table = groups.read(codebases.code_of(codebase), pool, scale)
    if queues and not table.groups:
        os.environ["CELERY_WORKER_QUEUES"] = queues  # a worker's own variable for --queues
    return table, table.groups or (Group(pool=pool, scale=(scale, scale)),)


def typed(*names: str) -> dict[str, str]:
    """By variable, the values of options that were typed, or stand in .env."""
    context = click.get_current_context()
    given = {name for name in names if context.get_parameter_source(name) is not ParameterSource.DEFAULT}
    return {name.upper(): str(context.params[name]) for name in names if name in given}
