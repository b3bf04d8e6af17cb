"""Tables of every setting, with the reason that stands beside it in the code or in .env.example: its only source.

A reason is the comment on a setting's own line, or else the one above it, which is for each line that follows, up to the next
comment or an empty line.
"""

import ast
import inspect
import io
import os
import re
import runpy
import tokenize
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

from celery.app.defaults import NAMESPACES, flatten

from celery_kit import defaults
from celery_kit.brokers import BROKERS, Broker
from celery_kit.operate.cli import cli
from celery_kit.operate.stacks.pythons import PYTHONS
from celery_kit.pools.table import POOLS
from celery_kit.profile import Profile
from celery_kit.results import BACKENDS

ROOT = Path(__file__).resolve().parents[1]
VARIABLE = re.compile(r"#([A-Z][A-Z0-9_]*)=(.*)")
#: Those with containers; a row that is another's but for its server has the settings of that.
STACKS = list({broker.settings: broker for broker in reversed(BROKERS.values()) if broker.compose_file}.values())[::-1]


def table(*rows: Iterable[str]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * (head.count(" | ") + 1), *body])


def variables() -> list[tuple[str, str, str]]:
    """Every variable of .env.example: its name, its default, what it does."""
    found, words, ended = [], list[str](), True
    for line in (ROOT / ".env.example").read_text().splitlines():
        if match := VARIABLE.fullmatch(line):
            found.append((match[1], match[2], " ".join(words)))
            ended = True
        elif line.startswith("# "):
            words = [line[2:]] if ended else [*words, line[2:]]
            ended = False
        else:
            words, ended = [], True
    return found


def variables_table() -> str:
    return table(
        ("variable", "default", "what it does"),
        *_once([(f"`{name}`", f"`{default}`" if default else "", what) for name, default, what in variables()]),
    )


def pythons() -> str:
    return table(
        ("PYTHON", "official image", "where no registry answers", "run before this was written"),
        *(
            (
                f"`{one.version}`",
                f"`{one.official}`",
                f"built from Debian {one.debian}" if one.debian else f"refused; or an image of yours, by `{one.variable}`",
                one.run,
            )
            for one in PYTHONS.values()
        ),
    )


def knobs() -> str:
    """What each command takes, as the command line itself says it; all but the stacks' three axes."""
    return table(
        ("command", "takes", "default", ""),
        *(
            (f"`make {name}`", f"`{option.envvar}=`", _default(option.default), _cell(getattr(option, "help", None) or ""))
            for name, command in sorted(cli.commands.items())
            for option in command.params
            if option.envvar
        ),
    )


def of_the_app() -> str:
    """What is set whatever the combination; values that the environment gives are named by their variable."""
    reasons, given = _of_all(), {name for name, _, _ in variables()}
    values = _configured()
    rows = []
    for name in reasons:
        variable = next((one for one in (f"CELERY_{name.upper()}", name.upper()) if one in given), None)
        rows.append((f"`{name}`", _value(values[name], variable), reasons[name]))
    return table(("setting", "value", "why"), *_once(rows))


def of_the_brokers() -> str:
    return _of_rooms("broker", [(broker.name, broker.settings) for broker in STACKS])


def of_the_backends() -> str:
    return _of_rooms("results by", [(backend.name, backend.settings) for backend in BACKENDS.values()])


def of_the_pools() -> str:
    """What `celery worker` gets with each, where the user names nothing else."""
    return table(
        (
            "pool",
            "`worker_concurrency`",
            "flags",
            "`worker_prefetch_multiplier` on `ENGINE=fast`",
        ),
        *(
            (
                f"`{pool.name}`",
                str(pool.concurrency or "one a CPU core, within its CPU limit"),
                " ".join(f"`{flag}`" for flag in pool.worker_flags),
                str(pool.fast_prefetch),
            )
            for pool in POOLS.values()
        ),
    )


def of_the_fast_engine() -> str:
    return table(
        ("setting", "why"), *((f"`{name}`", _cell(why)) for name, why in whys(inspect.getsource(defaults.fast)).items())
    )


def changed() -> str:
    """The settings whose value is another than Celery's own."""
    defaults: Any = flatten(NAMESPACES)
    celerys = {name: option.default for name, option in defaults}
    rows = [("everywhere", name, _configured()[name]) for name in _of_all()]
    for broker in STACKS:
        rows += [(f"{broker.name} as the broker", *one) for one in _flat(broker.settings(_profile()))]
    for backend in BACKENDS.values():
        rows += [(f"results by {backend.name}", *one) for one in _flat(backend.settings(_profile()))]
    return table(
        ("where", "setting", f"Celery {version('celery')}", "here"),
        *(
            (where, f"`{name}`", "kombu's own" if "." in name else _value(celerys[name], None), _value(value, None))
            for where, name, value in rows
            if "." in name or (name in celerys and _value(value, None) and _plain(celerys[name]) != _plain(value))
        ),
    )


def of_any_app() -> str:
    """The settings of every app that has the kit whose value is another than Celery's own; an app's own settings win."""
    known: Any = flatten(NAMESPACES)
    celerys = {name: option.default for name, option in known}
    values = defaults.general(_profile())
    rows = [
        (f"`{name}`", _value(celerys[name], None), _value(values[name], None), why)
        for name, why in whys(inspect.getsource(defaults.general)).items()
        if name in celerys and _plain(celerys[name]) != _plain(values[name])
    ]
    return table(("setting", f"Celery {version('celery')}", "with the kit", "why"), *_once(rows))


def _of_all() -> dict[str, str]:
    """By name, the reason of each setting of app/config.py and celery_kit/defaults.py."""
    return whys((ROOT / "app/config.py").read_text()) | whys(inspect.getsource(defaults.general))


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return value.total_seconds()
    return list(value) if isinstance(value, tuple) else value


def of_a_room() -> str:
    """What a broker's room supplies, from the contract itself."""
    must = {one.name for one in fields(Broker) if one.default is MISSING and one.default_factory is MISSING}
    reasons = whys(inspect.getsource(Broker))
    return table(
        ("field", "needed", "what it is"),
        *((f"`{one.name}`", "yes" if one.name in must else "", _cell(reasons[one.name])) for one in fields(Broker)),
    )


def whys(source: str) -> dict[str, str]:
    """By name, the reason of each setting that a module assigns or a function's dictionaries hold, as `outer.inner`."""
    comments = {
        token.start[0]: (token.string.lstrip("#: "), not token.line[: token.start[1]].strip())
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    lines = source.splitlines()
    return {name: _why(line, comments, lines) for name, line in _named(ast.parse(source))}


def _why(line: int, comments: dict[int, tuple[str, bool]], lines: list[str]) -> str:
    if line in comments:
        return comments[line][0]
    while line > 1 and lines[line - 1].strip():
        line -= 1
        words = list[str]()
        while line in comments and comments[line][1]:
            words.insert(0, comments[line][0])
            line -= 1
        if words:
            return " ".join(words)
    return ""


def _named(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for field in tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []:  # a room's contract
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            yield field.target.id, field.lineno
    if any(isinstance(node, ast.FunctionDef) for node in tree.body):  # a room's settings()
        for node in ast.walk(tree):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Dict):
                yield from _keys(node.value)
        return
    for node in tree.body:
        for target in node.targets if isinstance(node, ast.Assign) else []:
            for name in ast.walk(target):
                if isinstance(name, ast.Name) and not name.id.startswith("_"):
                    yield name.id, name.lineno


def _keys(tree: ast.Dict, outer: str = "") -> Iterator[tuple[str, int]]:
    for key, value in zip(tree.keys, tree.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(key.value, str)
        if isinstance(value, ast.Dict):
            yield from _keys(value, f"{outer}{key.value}.")
        else:
            yield f"{outer}{key.value}", key.lineno


def _of_rooms(heading: str, rooms: list[tuple[str, Callable[[Profile], dict[str, Any]]]]) -> str:
    given = {name for name, _, _ in variables()}
    rows = []
    for room, settings in rooms:
        values, reasons = dict(_flat(settings(_profile()))), whys(inspect.getsource(settings))
        for name, value in values.items():
            variable = name.rpartition(".")[2].upper()
            rows.append((f"`{room}`", f"`{name}`", _value(value, variable if variable in given else None), reasons[name]))
    return table((heading, "setting", "value", "why"), *_once(rows))


def _once(rows: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Rows whose last cell is a reason, written out where it is not the one above."""
    above = None
    for *cells, reason in rows:
        yield (*cells, "as above" if reason and reason == above else _cell(reason))
        above = reason


def _flat(settings: dict[str, Any], outer: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{outer}{name}.")
        else:
            yield f"{outer}{name}", value


ENVIRON = {"BROKER": STACKS[0].name, "DATA_DIR": str(ROOT / ".kit/data")}


def _profile() -> Profile:
    return Profile.from_environ(ENVIRON)


class Follows(str):
    """In place of a value that the stack decides: the axes that it follows."""


@cache
def _configured() -> dict[str, Any]:
    """By setting, its value with nothing in the environment but a stack's three axes."""
    axes = {"BROKER": [broker.name for broker in STACKS], "BACKEND": list(BACKENDS), "POOL": list(POOLS)}
    runs = []
    for chosen in product(*axes.values()):
        stack = dict(zip(axes, chosen, strict=True))
        with patch.dict(os.environ, ENVIRON | stack, clear=True):
            runs.append((stack, defaults.general(Profile.from_environ()) | runpy.run_path(str(ROOT / "app/config.py"))))
    first = runs[0][1]
    found = {}
    for name in first:
        apart = [
            axis
            for axis in axes
            if len({repr(run.get(name)) for stack, run in runs if all(stack[o] == axes[o][0] for o in axes if o != axis)}) > 1
        ]
        found[name] = Follows(f"follows {' and '.join(f'`{axis}`' for axis in apart)}") if apart else first[name]
    return found


def _value(value: Any, variable: str | None) -> str:
    by = f", by `{variable}`" if variable else ""
    if isinstance(value, Follows):
        return value + by
    shown = repr(value).replace(f"{ROOT}/", "").replace("'", '"')
    return (f"`{shown}`" if len(shown) < 50 and isinstance(value, str | int | float | bool | list | None) else "") + by


def _default(value: Any) -> str:
    return f"`{value}`" if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _cell(words: str) -> str:
    """Words for a cell. A file of docs/ that they name becomes a link."""
    return re.sub(r"docs/([a-z-]+\.md)", r"[\1](\1)", words).replace("|", "\\|")


TABLES: dict[str, Callable[[], str]] = {
    "variables": variables_table,
    "knobs": knobs,
    "pythons": pythons,
    "settings_app": of_the_app,
    "settings_brokers": of_the_brokers,
    "settings_backends": of_the_backends,
    "settings_pools": of_the_pools,
    "settings_fast": of_the_fast_engine,
    "settings_changed": changed,
    "settings_any_app": of_any_app,
    "room": of_a_room,
}
