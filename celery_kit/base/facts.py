"""What servers, workers and the stack's processes report about themselves: the shapes that `make status` and `doctor` read."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict, cast
from urllib.parse import unquote

from celery import Celery
from kombu.utils.url import maybe_sanitize_url

from celery_kit.base.messages import FAILED, PAUSED
from celery_kit.base.types import Channel, Connection

#: How long to wait for one server, in seconds. Short, because a person is waiting for the answer.
PATIENCE = 1.0

#: Queues that carry no tasks: remote control and its replies, events, the queues of RabbitMQ's delayed delivery, failed tasks,
#: pauses.
INTERNAL = ("pidbox", "celeryev", "celery_delayed", FAILED, PAUSED)


@dataclass(frozen=True)
class Queue:
    """`waiting`, `unacknowledged` and `consumers` are numbers; `oldest` is the seconds since the next message was sent, by its
    header `sent`, or since its ETA. `paused`: no worker begins its tasks until it is resumed. None: the broker does not report
    it.
    """

    name: str
    waiting: int
    unacknowledged: int | None = None
    consumers: int | None = None
    oldest: float | None = None
    paused: bool | None = None


@dataclass(frozen=True)
class Held:
    """Unacknowledged messages: one with its queue, task and id, or the `number` of all that one worker holds.

    `holder`: the worker's node name; empty: no worker of the kit holds them. `dead`: for how many seconds that worker has shown
    no sign of life, beyond the time that it may; None: it lives.
    """

    holder: str
    number: int = 1
    dead: float | None = None
    queue: str = ""
    task: str = ""
    id: str = ""


@dataclass(frozen=True)
class Server:
    """A broker or results server. `version` is empty for a product that the kit cannot ask.

    `memory`: bytes. `keys`: how many it holds, where it counts them. `notes`: sentences. `faults`: pairs of what is wrong and
    what to do. `url`: its address, without a password. `held`: who holds its unacknowledged messages, where it knows that.
    `delayed`: how many of its tasks wait for their ETA; None: it does not know, or delays none itself.
    """

    product: str
    version: str
    queues: list[Queue] = field(default_factory=list)
    memory: int | None = None
    keys: int | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    held: list[Held] = field(default_factory=list)
    delayed: int | None = None


class TimetableEntry(TypedDict):
    """When one of beat's entries last ran (None: not yet) and is due next, in ISO 8601, and how often it ran."""

    last: str | None
    next: str
    runs: int


@dataclass(frozen=True)
class Member:
    """A process of the stack: a container, or a process of this machine.

    `role`: worker, beat, broker … `state`: in words. `node`: the worker's name; None for others.
    `said`: what beat wrote about its timetable; empty for others. `group`: the worker's, by name; empty: it is in none.
    `leads`: of several beats, whether this one leads; None for all others.
    """

    role: str
    state: str
    running: bool
    node: str | None = None
    said: dict[str, TimetableEntry] = field(default_factory=dict)
    group: str = ""
    leads: bool | None = None


def process(one: Member) -> dict[str, object]:
    """A process of the stack as JSON has it."""
    return {"role": one.role, "state": one.state, "running": one.running, "worker": one.node, "group": one.group or None}


#: The upper bounds of a histogram's buckets, in seconds. The last bucket has none.
BOUNDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0)


class Measured(TypedDict):
    """Of one task in one queue.

    `waited`, `ran`: how many were in each bucket of BOUNDS, and after the last number the sum of all, in seconds.
    `ended`: how many, by outcome. `early`: how many began before they were sent.
    """

    task: str
    queue: str
    waited: list[float]
    ran: list[float]
    ended: dict[str, int]
    early: int


#: The fields of a worker's report (celery_kit/observe/vitals.py), and the types that each may have.
VITALS: dict[str, tuple[type, ...]] = {
    "pool": (str,), "version": (str,), "visibility_timeout": (int, float), "longest_task": (int, float), "clock": (int, float),
    **dict.fromkeys(("consuming", "paused", "tasks", "measures"), (list,)),
    **dict.fromkeys(("concurrency", "registered", "active", "reserved", "scheduled", "processed", "memory"), (int,)),
}  # fmt: skip


class Vitals(TypedDict):
    """A worker's report; None for a field that it lacks. Times are in seconds, memory in bytes."""

    pool: str | None
    #: Of its code: APP_VERSION.
    version: str | None
    concurrency: int | None
    consuming: list[str] | None
    #: Queues that it would consume, and that are paused.
    paused: list[str] | None
    #: Names of its tasks, and their number, where the list is cut (celery_kit/observe/vitals.py).
    tasks: list[str] | None
    registered: int | None
    active: int | None
    reserved: int | None
    scheduled: int | None
    processed: int | None
    memory: int | None
    visibility_timeout: float | None
    longest_task: float | None
    clock: float | None
    #: What became of its tasks (celery_kit/pools/measures.py).
    measures: list[Measured] | None


def vitals_of(answer: object) -> Vitals:
    """A worker's report with all fields of :data:`VITALS`.

    A field that is missing or of another type is None: the worker may run another version of the kit.
    """
    given = answer if isinstance(answer, dict) else {}
    found = {name: given.get(name) if isinstance(given.get(name), kinds) else None for name, kinds in VITALS.items()}
    for name in ("consuming", "paused", "tasks"):
        if isinstance(names := found[name], list):
            found[name] = [str(one) for one in names]
    if isinstance(measures := found["measures"], list):
        found["measures"] = [one for one in measures if _is_measured(one)]
    return cast(Vitals, found)


def _is_measured(one: object) -> bool:
    """Whether it is a :class:`Measured` of this version."""
    if not isinstance(one, dict) or not isinstance(one.get("ended"), dict):
        return False
    histograms = all(isinstance(one.get(name), list) and len(one[name]) == len(BOUNDS) + 2 for name in ("waited", "ran"))
    return histograms and all(isinstance(one.get(name), kind) for name, kind in (("task", str), ("queue", str), ("early", int)))


def of_any_broker(app: Celery, connection: Connection, _: object) -> Server:
    """What kombu can ask any broker, for one that the kit has no module for: how many messages wait in the default queue."""
    name = app.conf.task_default_queue
    channel: Channel = connection.channel()
    try:
        waiting = channel.queue_declare(name, passive=True).message_count
    except connection.channel_errors:  # the queue does not exist yet
        waiting = 0
    notes = ["the kit has no module for this broker: other queues are not shown, and there are no dead letters"]
    return Server(connection.transport.driver_type, "", [Queue(name, int(waiting))], notes=notes)


def address(app: Celery) -> str:
    """The URL of the broker, or of each of several, without passwords."""
    connection = app.connection()
    return ", ".join(readable(one) for one in [connection.as_uri(), *map(maybe_sanitize_url, connection.alt[1:])])


def readable(url: str) -> str:
    """A URL as kombu and Celery print it, with an IPv6 address in brackets in place of its quoted form."""
    return re.sub(r"^(\w+://(?:[^/@]*@)?)(\w*%3A[\w%.]*)", lambda found: f"{found[1]}[{unquote(found[2])}]", url)


def carries_tasks(queue: str) -> bool:
    """Whether a queue holds tasks, by its name. The name of a reply queue of rpc is a UUID: 36 characters, four dashes."""
    return not any(word in queue for word in INTERNAL) and not (len(queue) == 36 and queue.count("-") == 4)


def known_queues(app: Celery, seen: Iterable[str]) -> list[str]:
    """The default queue, and those of `seen` that hold tasks, sorted."""
    return sorted({app.conf.task_default_queue, *filter(carries_tasks, seen)})
