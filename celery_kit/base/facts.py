"""What a server says of itself, for people who watch: shapes that every room fills, and how they are asked for.

`sent`, the time at which a waiting message was sent, is the header of `celery_kit/base/correlation.py`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from kombu.utils.url import maybe_sanitize_url

#: How long one server is waited for, in seconds: a person looks on.
PATIENCE = 1.0

#: Queues that carry no tasks: remote control, its replies, events, the waiting rooms of RabbitMQ's delayed delivery.
INTERNAL = ("pidbox", "celeryev", "celery_delayed")


@dataclass(frozen=True)
class Queue:
    """`waiting`, `unacknowledged`, `consumers`: numbers; `oldest`: seconds since the next message was sent; None: not told."""

    name: str
    waiting: int
    unacknowledged: int | None = None
    consumers: int | None = None
    oldest: float | None = None


@dataclass(frozen=True)
class Server:
    """`product` and `version` as it says them, `memory` in bytes, `keys` where it counts what it holds, `notes` in words;
    `faults`: what is wrong with it, and what mends that. `url`: where it is, without a password. A version of "" is that of a
    kind which the kit does not know how to ask."""

    product: str
    version: str
    queues: list[Queue] = field(default_factory=list)
    memory: int | None = None
    keys: int | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""


@dataclass(frozen=True)
class Member:
    """A process of the stack, as whoever started it sees it: a container, or a process of this machine.

    `role`: worker, beat, broker … `node`: the worker's name; None for others. `state`: in words.
    `said`: what beat wrote about its timetable.
    """

    role: str
    state: str
    running: bool
    node: str | None = None
    said: dict[str, Any] = field(default_factory=dict)


#: What a worker says of itself (celery_kit/observe/vitals.py), and of which kind each is.
VITALS: dict[str, tuple[type, ...]] = {
    "pool": (str,), "consuming": (list,), "tasks": (list,), "visibility_timeout": (int, float), "longest_task": (int, float),
    "clock": (int, float),
    **dict.fromkeys(("concurrency", "registered", "active", "reserved", "scheduled", "processed", "memory"), (int,)),
}  # fmt: skip


def told(answer: Any) -> dict[str, Any]:
    """A worker's answer with all of :data:`VITALS`; None is what it does not tell: it may be of another version."""
    given = answer if isinstance(answer, dict) else {}
    found = {name: given.get(name) if isinstance(given.get(name), kinds) else None for name, kinds in VITALS.items()}
    for name in ("consuming", "tasks"):
        if isinstance(names := found[name], list):
            found[name] = [str(one) for one in names]
    return found


def of_any_broker(app: Any, connection: Any, _: Any) -> Server:
    """What can be asked of a broker that the kit has no room for, as kombu has it: how much waits in the default queue."""
    name = app.conf.task_default_queue
    try:
        waiting = connection.channel().queue_declare(name, passive=True).message_count
    except connection.channel_errors:  # it is not there yet
        waiting = 0
    notes = ["the kit does not know how to look into it: other queues are not shown, and there are no dead letters"]
    return Server(connection.transport.driver_type, "", [Queue(name, int(waiting))], notes=notes)


def address(app: Any) -> str:
    """Where the broker is, or each of several, without passwords."""
    connection = app.connection()
    return ", ".join(readable(one) for one in [connection.as_uri(), *map(maybe_sanitize_url, connection.alt[1:])])


def readable(url: str) -> str:
    """A URL as kombu and Celery show it, with the address of an IPv6 host as people write it."""
    return re.sub(r"^(\w+://(?:[^/@]*@)?)(\w*%3A[\w%.]*)", lambda found: f"{found[1]}[{unquote(found[2])}]", url)


def carries_tasks(queue: str) -> bool:
    """Whether tasks wait in a queue, by its name. Reply queues of rpc have a UUID for a name: 36 characters, four dashes."""
    return not any(word in queue for word in INTERNAL) and not (len(queue) == 36 and queue.count("-") == 4)


def known_queues(app: Any, seen: Iterable[str]) -> list[str]:
    """The default queue, and those of `seen` that carry tasks."""
    return sorted({app.conf.task_default_queue, *filter(carries_tasks, seen)})
