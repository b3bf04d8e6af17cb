"""What a server says of itself, for people who watch: shapes that every room fills, and how they are asked for.

`sent`, the time at which a waiting message was sent, is the header of `app/correlation.py`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

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
    `faults`: what is wrong with it, and what mends that."""

    product: str
    version: str
    queues: list[Queue] = field(default_factory=list)
    memory: int | None = None
    keys: int | None = None
    notes: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)


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


def carries_tasks(queue: str) -> bool:
    """Whether tasks wait in a queue, by its name. Reply queues of rpc have a UUID for a name: 36 characters, four dashes."""
    return not any(word in queue for word in INTERNAL) and not (len(queue) == 36 and queue.count("-") == 4)


def known_queues(app: Any, seen: Iterable[str]) -> list[str]:
    """The default queue, and those of `seen` that carry tasks."""
    return sorted({app.conf.task_default_queue, *filter(carries_tasks, seen)})
