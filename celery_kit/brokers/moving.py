"""Move messages from one broker to another: what the module of a broker supplies for it, and the loop.

A batch is claimed at its source in one step, under a token. It is stored at its target in one step, which notes the token. Then
it is dropped at the source in one step. Whoever is killed between two steps leaves the claim, and the next run goes on with it:
it asks the target whether the token is noted there. So each message is moved once, also if two runs do it at a time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol
from uuid import uuid4

from celery_kit.base.facts import carries_tasks
from celery_kit.base.messages import DEAD, FAILED

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.types import Connection, Headers
    from celery_kit.brokers.contract import DeadLetter

#: What a message is at its source: one that waits in a queue or until its ETA, a dead letter, a failed task.
Place = Literal["queue", "delayed", "dead", "failed"]
PLACES: tuple[Place, ...] = ("queue", "delayed", "dead", "failed")
#: The most messages of a batch, and the bytes from which on it takes no further one.
MOST, BYTES = 200, 4_000_000
#: How the names begin of the queues and keys that a move needs at both ends.
PREFIX = "celery.migrating"


@dataclass(frozen=True)
class Moving:
    """A message on its way, in no broker's form. `due`: when its task is due, in seconds since 1970; 0: at once, or unknown.

    `headers` and `properties` are those of its sender: brokers' own are left out. `letter`: of a dead letter or a failed task.
    """

    place: Place
    queue: str
    body: bytes
    content_type: str | None
    content_encoding: str | None
    headers: Headers
    properties: Headers
    due: float = 0.0
    letter: DeadLetter | None = None


class Batch(NamedTuple):
    """Messages that are claimed under a token, in the order of their queues. `to`: the name of the end that they are claimed
    for. `of`: their number when they were claimed; there may be fewer once they are stored at their target.
    """

    token: str
    to: str
    messages: Sequence[Moving]
    of: int


class NoRoomError(Exception):
    """The server has answered that it cannot store a batch for now. Nothing of the batch is stored."""


class BusyError(Exception):
    """Somebody else works at this end: another run, or what takes messages that are claimed."""


class End(Protocol):
    """One end of a move. All methods raise the errors of its connection."""

    def __init__(self, app: Celery, connection: Connection, environ: Mapping[str, str], queues: Sequence[str]) -> None:
        """`queues`: the only ones whose messages are moved; empty: all that are known."""

    def name(self) -> str:
        """A name that this end keeps, and that tells it from others."""

    def same(self, other: End) -> bool:
        """Whether another end of this kind is at the same place of the same server."""

    def counts(self) -> Counter[str]:
        """How many messages there are to move: by queue, and by each other place."""

    def held(self) -> int:
        """How many messages workers hold, which are not moved."""

    def room(self) -> int | None:
        """Bytes that this end can take; None: it does not say."""

    def size(self) -> int:
        """Bytes of the messages that there are to move, roughly; 0: it does not say."""

    def claim(self, to: str) -> Batch | None:
        """Claim the next messages for the end `to`; those of an earlier claim that was not dropped come first. None: none."""

    def drop(self, batch: Batch) -> None:
        """Forget a claim. Does nothing if it is dropped."""

    def prepare(self, queues: Iterable[str]) -> None:
        """Make queues ready to take messages, before any is claimed. Refuses those that cannot."""

    def noted(self, token: str) -> bool:
        """Whether the batch with this token was stored here."""

    def store(self, batch: Batch) -> None:
        """Store a batch, and note its token, in one step. Does nothing if it is noted. Raises NoRoomError."""

    def forget(self, token: str) -> None:
        """Called once the batch with this token is dropped at its source."""

    def close(self) -> None:
        """Remove what is only needed while messages are moved."""


class OtherTargetError(Exception):
    """The source has a claim of an earlier run for another target."""


def move(source: End, target: End, done: Callable[[Batch], object]) -> None:
    """Move all messages. `done` is called with each batch once it is moved.

    Raises OtherTargetError, NoRoomError, and the errors of both ends. It can be called again then, and goes on.
    """
    to = target.name()
    while batch := source.claim(to):
        if batch.to != to:
            raise OtherTargetError(batch.to)
        if not target.noted(batch.token):
            if len(batch.messages) < batch.of:
                raise BusyError(f"{len(batch.messages)} of {batch.of} claimed messages are there: somebody took the others")
            target.store(batch)
        source.drop(batch)
        target.forget(batch.token)
        done(batch)


def token() -> str:
    """A token for a new claim."""
    return uuid4().hex


def is_moved(queue: str) -> bool:
    """Whether a queue of this name has tasks to move. Dead letters, and failed tasks, are places of their own."""
    return carries_tasks(queue) and not queue.startswith((DEAD, FAILED, PREFIX))


def due_of(headers: Headers) -> float:
    """When a message's task is due, in seconds since 1970; 0 without an ETA that has a time zone."""
    return _moment(headers.get("eta"))


def expires_of(headers: Headers) -> float:
    """When a message's task expires, in seconds since 1970; 0 if it does not, or the time is not certain."""
    return _moment(headers.get("expires"))


def _moment(text: object) -> float:
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        return at.timestamp() if at and at.tzinfo else 0.0
    except (ValueError, OverflowError):  # the worker that receives it reports this
        return 0.0


def stored_at(letter: DeadLetter) -> float:
    """When a letter was stored, in seconds since 1970: now, if it does not say so."""
    return _moment(letter.when) or time.time()
