"""Worker groups: the table `workers.toml`, read and checked. What starts or shows workers takes its groups from here.

A group is a number of equal workers: one pool, some queues, limits of their own. The table stands beside the app's code, in
`app/` or in SOURCE. Without it a stack has one group without a name, which POOL, SCALE and QUEUES describe.

FIELDS is the table of what a group may say. `workers.schema.json`, the page docs/groups.md and the refusals are made from it.
"""

import json
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import NoReturn, TypeAlias

from celery_kit.base.choices import MOST_CONCURRENCY, VERSION
from celery_kit.base.facts import Member, Queue
from celery_kit.base.files import read_regular
from celery_kit.base.refusals import refuse, unless_refused
from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS, WISHES
from celery_kit.produce.queues import of_version

FILE = "workers.toml"
#: The JSON schema of the table, made by `make docs`.
SCHEMA = Path(__file__).with_name("workers.schema.json")
#: The most bytes of a table, and the most characters of a wrong value that a refusal shows.
MOST, SHOWN = 1024 * 1024, 60
#: A group's name is a part of the names of services, processes and workers.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,28}[a-z0-9])?")
MOST_WORKERS = 1_000
#: Seconds that a task may wait in a group without a target.
MOST_WAIT = float("inf")
#: A JSON schema, or a part of one.
Schema: TypeAlias = Mapping[str, object]


@dataclass(frozen=True)
class Kind:
    """What values a field may have: in words, as a JSON schema, and as a check of a value that TOML gives."""

    words: str
    schema: Schema
    fits: Callable[[object], bool]


def _whole(least: int, most: int, unit: str) -> Kind:
    schema = {"type": "integer", "minimum": least, "maximum": most}
    return Kind(
        f"a whole number from {least} to {most} {unit}", schema, lambda given: type(given) is int and least <= given <= most
    )


def _number(least: float, most: float, unit: str) -> Kind:
    schema = {"type": "number", "minimum": least, "maximum": most}
    return Kind(
        f"a number from {least:g} to {most:g} {unit}",
        schema,
        lambda given: type(given) in (int, float) and least <= given <= most,  # type: ignore[operator]
    )


def _text(pattern: str, words: str) -> Kind:
    schema = {"type": "string", "pattern": f"^{pattern}$"}
    return Kind(words, schema, lambda given: isinstance(given, str) and bool(re.fullmatch(pattern, given)))


def _one_of(names: Iterable[str]) -> Kind:
    allowed = list(names)
    return Kind(f"one of {', '.join(allowed)}", {"enum": allowed}, lambda given: given in allowed)


def _names(one: Kind, words: str) -> Kind:
    schema = {"type": "array", "items": one.schema, "minItems": 1, "uniqueItems": True}
    return Kind(
        words,
        schema,
        lambda given: isinstance(given, list) and bool(given) and all(map(one.fits, given)) and len({*given}) == len(given),
    )


def _bounds(one: Kind, words: str) -> Kind:
    """A table with `min` and, if it is not the same, `max`."""
    schema = {
        "type": "object",
        "properties": {"min": one.schema, "max": one.schema},
        "required": ["min"],
        "additionalProperties": False,
    }
    return Kind(
        words,
        schema,
        lambda given: (
            isinstance(given, dict) and {"min"} <= given.keys() <= {"min", "max"} and all(map(one.fits, given.values()))
        ),
    )


@dataclass(frozen=True)
class Field:
    """A row of the table: what a group may say. `otherwise`: what holds for a group that leaves it out.

    `variable`: the variable of a worker's environment that carries it; empty: the stack itself acts on it.
    """

    name: str
    kind: Kind
    what: str
    otherwise: str
    variable: str = ""


_VERSION = _text(VERSION, "a text of letters, digits, _, . and -, 80 at most")
_QUEUE = _text(r"[^\s,$]{1,200}", "a name without spaces, commas and $")
FIELDS = {
    one.name: one
    for one in (
        Field(
            "queues", _names(_QUEUE, "a list of queues, each once, of names without spaces, commas and $"),
            "the queues that its workers consume", "required", "CELERY_WORKER_QUEUES",
        ),
        Field("pool", _one_of(POOLS), "the pool of its workers, and so their image", "`POOL`", "POOL"),
        Field(
            "concurrency", _whole(1, MOST_CONCURRENCY, "tasks"), "how many tasks a worker runs at once",
            "`WORKER_CONCURRENCY`", "CELERY_WORKER_CONCURRENCY",
        ),
        Field(
            "scale", _bounds(_whole(1, MOST_WORKERS, "workers"), "{min = 1, max = 4}: whole numbers from 1 to 1000 workers"),
            "how many workers it has: `min` of them start; never more than `max` (default: `min`)", "`SCALE`",
        ),
        Field(
            "target_wait", _number(0.1, 86_400, "seconds"),
            "how long a task may wait for a worker, in seconds: `make balance` adds workers, `make doctor` reports it",
            "no target; 10 for `make balance`",
        ),
        Field(
            "time_limit", _whole(0, 86_400, "seconds; 0: no limit"),
            "how long a task may run, in seconds; 0: no limit. The group's stop grace period follows from it",
            "`TASK_TIME_LIMIT`", "TASK_TIME_LIMIT",
        ),
        Field(
            "memory", _text(r"([1-9][0-9]{1,6}m|[1-9][0-9]{0,3}g)", "a text such as \"512m\" or \"2g\", of at least \"10m\""),
            "the memory of a worker's container", "`WORKER_MEMORY`",
        ),
        Field("cpus", _number(0.01, 1_024, "cores"), "the CPU cores of a worker's container", "`WORKER_CPUS`"),
        Field(
            "max_tasks_per_child", _whole(1, 1_000_000_000, "tasks"),
            "a child process is replaced after so many tasks", "never", "CELERY_WORKER_MAX_TASKS_PER_CHILD",
        ),
        Field(
            "max_memory_per_child", _whole(1, 1_000_000_000, "KiB"),
            "a child process is replaced after a task with which it has come to more memory, in KiB, as Celery counts it",
            "never", "CELERY_WORKER_MAX_MEMORY_PER_CHILD",
        ),
        Field(
            "version", _VERSION, "the version that its workers run: the end of their image's tag, of `make images TAG=`",
            "the code of this checkout",
        ),
        Field(
            "queue_version", _VERSION, "the version of its queues, and of those that it sends to: `mail` is `mail@1.4`",
            "`QUEUE_VERSION`", "QUEUE_VERSION",
        ),
    )
}  # fmt: skip
#: The features of the support matrix that a time limit takes: the rows of a pool's `limits` say what it does instead.
TIME_LIMITS = ("hard_time_limit_of_busy_work", "hard_time_limit_of_a_waiting_call")


@dataclass(frozen=True)
class Group:
    """A group of workers. Without a name it is the one of a stack without a table. None: the stack's own value holds.

    `scale`: how many workers it has at least and at most. Times are in seconds.
    """

    name: str = ""
    pool: str = "prefork"
    queues: tuple[str, ...] = ()
    scale: tuple[int, int] = (1, 1)
    concurrency: int | None = None
    target_wait: float | None = None
    time_limit: int | None = None
    memory: str | None = None
    cpus: float | None = None
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    version: str | None = None
    queue_version: str | None = None

    @property
    def service(self) -> str:
        """The name of its service in a stack of containers, and what the names of its processes begin with."""
        return f"worker-{self.name}" if self.name else "worker"

    def environ(self) -> dict[str, str]:
        """The variables of its workers' environment that differ from those of the stack."""
        values = {one.variable: getattr(self, one.name) for one in FIELDS.values() if one.variable}
        return {
            name: ",".join(value) if isinstance(value, tuple) else str(value)
            for name, value in values.items()
            if value is not None and value != ()
        }

    def noted(self) -> str:
        """The group as JSON: the label of its containers."""
        return json.dumps(asdict(self))

    @classmethod
    def from_note(cls, note: str) -> "Group":
        """The group that :meth:`noted` has described. Fields that this version does not know are left out."""
        known = {one.name for one in fields(cls)}
        given = {name: value for name, value in json.loads(note).items() if name in known}
        given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
        return cls(**given)


@dataclass(frozen=True)
class Table:
    """A table that was read. `named`: by group, the fields that it names itself. Without a file there are no groups."""

    file: Path
    groups: tuple[Group, ...] = ()
    named: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        return shown(self.file)

    def overruled(self, typed: Mapping[str, str]) -> str:
        """A line that says which groups take what was typed: POOL, SCALE and QUEUES. Empty if none was, or without a table."""
        takes = {name: [one.name for one in self.groups if name.lower() not in self.named[one.name]] for name in typed}
        words = [f"{name}={typed[name]} holds for {', '.join(groups) or 'no group'}" for name, groups in takes.items()]
        return f"{self} comes first: {'; '.join(words)}" if words and self.groups else ""


def shown(file: Path) -> str:
    """A file's path as a person would type it in the project's folder."""
    return str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)


def read(folder: Path, pool: str, scale: int) -> Table:
    """Read the table in a folder. `pool`, `scale`: those of groups that name none.

    Refuses (one line, exit code 2) a table that is wrong.
    """
    file = folder / FILE
    try:
        given = tomllib.loads(read_regular(file, MOST).decode())
    except FileNotFoundError:
        return Table(file)
    except OSError as error:
        refuse(f"{shown(file)} cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # not UTF-8, not TOML
        refuse(f"{shown(file)} is not TOML: {error}")
    if other := next((name for name in given if name != "groups"), None):
        refuse(f"{shown(file)}: {json.dumps(other)} is not known; allowed: groups")
    if not isinstance(groups := given.get("groups"), dict) or not groups:
        refuse(f"{shown(file)} has no group; one is a table such as [groups.mail], with at least its queues")
    found = tuple(_group(f"{shown(file)}: groups", name, one, pool, scale) for name, one in groups.items())
    return Table(file, found, {name: frozenset(one) for name, one in groups.items()})


def _group(where: str, name: str, given: object, pool: str, scale: int) -> Group:
    if not NAME.fullmatch(name):
        refuse(f"{where}.{_json(name)} is not allowed; small letters, digits and -, a letter first, 30 at most")
    if not isinstance(given, dict):
        _wrong(f"{where}.{name}", given, "a table, with at least its queues")
    for key, value in given.items():
        if key not in FIELDS:
            refuse(f"{where}.{name}.{key if key.isidentifier() else _json(key)} is not known; allowed: {', '.join(FIELDS)}")
        if not FIELDS[key].kind.fits(value):
            _wrong(f"{where}.{name}.{key}", value, FIELDS[key].kind.words)
    if "queues" not in given:
        refuse(f"{where}.{name}.queues is missing; {FIELDS['queues'].kind.words}")
    bounds = given.get("scale", {"min": scale})
    least, most = bounds["min"], bounds.get("max", bounds["min"])
    if least > most:
        _wrong(f"{where}.{name}.scale", bounds, f"a max of at least min, {least}")
    version = given.get("queue_version") or os.environ.get("QUEUE_VERSION", "")
    queues = tuple(of_version(queue, version) for queue in given["queues"])
    found = Group(**{**given, "name": name, "pool": given.get("pool", pool), "queues": queues, "scale": (least, most)})
    row, mine = POOLS[found.pool], f"{where}.{name}"
    if (found.concurrency or 1) > 1 and (limit := row.limits.get("tasks_overlap")):
        refuse(f"{mine}.concurrency = {found.concurrency} cannot be had on pool {row.name}: {limit.what}; scale adds workers")
    for wish in WISHES:
        key = wish.name.removeprefix("worker_")
        if key in given and not wish.served(row):
            refuse(f"{mine}.{key} = {given[key]} has no effect on pool {row.name}: {wish.instead}")
    return found


def _json(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _wrong(where: str, value: object, allowed: str) -> NoReturn:
    refuse(f"{where} = {_json(value)} is not allowed; {allowed}")


def schema() -> Schema:
    """The JSON schema of the table, for editors and other programs."""
    group = {
        "type": "object",
        "properties": {
            one.name: {"description": f"{one.what}. Otherwise: {one.otherwise}", **one.kind.schema} for one in FIELDS.values()
        },
        "required": ["queues"],
        "additionalProperties": False,
    }
    groups = {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": f"^{NAME.pattern}$"},
        "additionalProperties": group,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The worker groups of a celery-kit stack",
        "type": "object",
        "properties": {"groups": groups},
        "required": ["groups"],
        "additionalProperties": False,
    }


def queues_of(groups: Iterable[Group]) -> list[str]:
    """The queues that some group consumes, each once, in the order of the groups."""
    return list(dict.fromkeys(queue for group in groups for queue in group.queues))


def role_of(service: str) -> str:
    """The role of a service or process by its name: `worker-mail` is a worker."""
    return "worker" if service.startswith("worker-") else service


def notes(table: Table, queues: Iterable[str], limited: Mapping[str, Sequence[str]], contained: bool) -> Iterator[str]:
    """What a user should know of a table whose groups have started, a line each: queues of the app that no group consumes, and
    what the groups or their tasks ask for and do not get.

    `queues`: those that the app knows. `limited`: by queue, its tasks with a time limit of their own. `contained`: the workers
    run in containers.
    """
    if missing := sorted({*queues} - {*queues_of(table.groups)}):
        yield f"no group of {table} consumes {', '.join(missing)}: its tasks wait"
    for group in table.groups:
        tasks = [task for queue in group.queues for task in limited.get(queue, ())]
        askers = ["its time_limit"] * bool(group.time_limit) + [f"the time limit of {', '.join(tasks)}"] * bool(tasks)
        rows = [limit for feature in TIME_LIMITS if (limit := POOLS[group.pool].limits.get(feature))]
        yield from (f"{group.name} on {group.pool}, {' and '.join(askers)}: {limit.what}" for limit in rows if askers)
        if (group.memory or group.cpus) and not contained:
            yield f"{group.name}: memory and cpus hold in containers alone"


def longest(groups: Iterable[Group], otherwise: int) -> int:
    """The longest time limit of the groups, in seconds; 0: one of them has none. `otherwise`: of those that name none."""
    limits = [otherwise if one.time_limit is None else one.time_limit for one in groups]
    return 0 if 0 in limits else max(limits, default=otherwise)


def faults(
    folder: Path, running: Sequence[Group] | None, members: Sequence[Member], queues: Sequence[Queue]
) -> Iterator[tuple[str, str]]:
    """What is wrong with a stack's groups, and what to do. `folder`: that of the table. `running`: the groups as the stack was
    started with them; None: no stack runs. `members`: its processes. `queues`: as its broker reports them.
    """
    table, why = unless_refused(lambda: read(folder, "prefork", 1))
    if table is None:
        yield why, "correct it: docs/groups.md"
        return
    if running is None:
        return
    there = {one.name: one for one in running}
    again = f"'make up' starts the groups as {table} says"
    for one in table.groups:
        named = table.named[one.name] if one.name in there else ()
        if changed := sorted(name for name in named if getattr(one, name) != getattr(there[one.name], name)):
            yield f"group {one.name} runs with another {', '.join(changed)} than {table} says", again
        elif one.name not in there:
            yield f"group {one.name} of {table} does not run", again
    for one in running:
        if one.name not in table.named:
            yield f"group {one.name} runs, and {table} has no such group", again
        number = sum(member.running and member.group == one.name for member in members)
        if number < one.scale[0]:
            yield (
                f"group {one.name} has {number} of {one.scale[0]} workers",
                f"'make logs GROUP={one.name}' shows why; 'make up'",
            )
        mine = [queue for queue in queues if queue.name in one.queues and not queue.paused]
        late = [queue for queue in mine if (queue.oldest or 0) > (one.target_wait or MOST_WAIT)]
        for queue in late:
            yield (
                f"a task has waited in queue {queue.name} for {queue.oldest:.0f} s; group {one.name} has {one.target_wait:g} s",
                f"'make balance', or more workers (scale) or more tasks at once (concurrency) in {table}, then 'make up'",
            )
