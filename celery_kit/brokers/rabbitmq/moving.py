"""RabbitMQ as an end of a move (celery_kit/brokers/moving.py): AMQP's transactions claim a batch, and store one.

What is claimed waits in a queue of its own: copies with a header that says what they are, published in the transaction that
acknowledges the messages. The note of a batch that was stored is a message of another queue, published in the transaction that
publishes the batch. Both queues are ledgers (`ledger.py`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import cached_property
from math import ceil
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import quote
from uuid import uuid4

from amqp.exceptions import NotFound, PreconditionFailed, ResourceLocked
from amqp.serialization import dumps
from kombu.transport.native_delayed_delivery import MAX_LEVEL, calculate_routing_key, level_name

from celery_kit.base.messages import DEAD, DELAY, FAILED, NOTE
from celery_kit.base.refusals import refuse
from celery_kit.brokers import moving
from celery_kit.brokers.contract import DeadLetter, letter_from, moment
from celery_kit.brokers.moving import Batch, Moving, NoRoomError, Place
from celery_kit.brokers.rabbitmq import dead
from celery_kit.brokers.rabbitmq.delayed import ADDED, LONGEST
from celery_kit.brokers.rabbitmq.facts import management
from celery_kit.brokers.rabbitmq.failed import MOST_HEADERS, OURS, body_of, fitting, is_there
from celery_kit.brokers.rabbitmq.ledger import Ledger, headers_of
from celery_kit.fixes.delayed_messages import Delayed

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection as KombusConnection
    from upstream.amqp import Channel
    from upstream.amqp import Connection as AmqpConnection
    from upstream.amqp import Message as Raw

    from celery_kit.base.types import Connection, Headers, Message

#: The queues of claimed messages, and of notes.
CLAIMED, NOTED = moving.PREFIX, f"{moving.PREFIX}.noted"
#: The most messages of a claim. Of more acknowledgements of one quorum queue the broker sends some later, or never if the
#: client is gone by then (quorum_commands_soft_limit, 32): these messages would be claimed, and in their queue again.
AT_ONCE = 20
#: The header of a claimed message: what it is. That of a note: its token.
CLAIM, TOKEN = "celery-kit-claim", "celery-kit-token"
#: Milliseconds for which a note stays that no run removes.
WEEK = "604800000"
#: AMQP's properties that a message takes along, and their types. RabbitMQ compares `user_id` with the account that publishes.
PROPERTIES: dict[str, type] = {
    "priority": int, "timestamp": datetime,
    **dict.fromkeys(("correlation_id", "reply_to", "expiration", "message_id", "type", "app_id"), str),
}  # fmt: skip
#: Arguments of a queue, and words of a policy, by which it refuses messages or drops some.
LIMITS = ("max-length", "max-length-bytes")


class Claimed(NamedTuple):
    """What the header of a claimed message says. `of`: how many are in its batch, and `number`: which one it is."""

    token: str
    to: str
    number: int
    of: int
    place: Place
    queue: str
    due: float
    expiration: str | None
    letter: Headers | None


class RabbitmqEnd:
    """See moving.End."""

    def __init__(self, app: Celery, connection: Connection, environ: Mapping[str, str], queues: Sequence[str]) -> None:
        self.app, self.connection, self.environ = app, connection, environ
        self.channel: Channel = connection.channel()
        dead.declare(self.channel, DEAD, FAILED)
        self._expires = int(app.conf.get("failed_expires") or 604_800)
        self._listed = self._list()
        names = set(queues) or {*app.amqp.queues, str(app.conf.task_default_queue), *self._listed}
        self._queues = [name for name in sorted(filter(moving.is_moved, names)) if self._can_be_read(name)]
        self._levels = [name for name in map(level_name, range(MAX_LEVEL, -1, -1)) if self._is_there(name)]
        self._reached: dict[str, bool] = {}  # queues that are there; whether delayed messages reach them

    @cached_property
    def _claims(self) -> Ledger:
        return Ledger(self.connection, CLAIMED)

    @cached_property
    def _notes(self) -> Ledger:
        return Ledger(self.connection, NOTED)

    # What there is

    def _list(self) -> dict[str, Headers]:
        """What the management interface says of the queues; nothing, if it does not answer."""
        path = f"queues/{quote(self.connection.virtual_host, safe='')}"
        try:
            return {str(one["name"]): one for one in management(self.connection, self.environ, path)}
        except OSError:
            return {}

    def _is_there(self, name: str) -> bool:
        return name in self._listed or is_there(self.connection, name)

    def _can_be_read(self, name: str) -> bool:
        about = self._listed.get(name, {})
        return not (about.get("exclusive") or about.get("type") == "stream") and self._is_there(name)

    def name(self) -> str:
        """The cluster's name, and the virtual host's."""
        about = cast("AmqpConnection", self.connection.connection).server_properties
        return f"{about.get('cluster_name')}/{self.connection.virtual_host}"

    def same(self, other: moving.End) -> bool:
        """Whether the other end sees a queue of this one."""
        mark, there = f"{moving.PREFIX}.{uuid4().hex}", cast("RabbitmqEnd", other).connection.channel()
        self.channel.queue_declare(mark, exclusive=True)
        try:
            there.queue_declare(mark, passive=True)
        except NotFound:
            return False
        except ResourceLocked:
            pass
        return True

    def counts(self) -> Counter[str]:
        """See End. A message that waits for its ETA may be counted at two of its levels, or at none."""
        found = Counter({name: self._count(name) for name in self._queues})
        found["delayed"] = sum(map(self._count, self._levels))
        found["dead"], found["failed"] = self._count(DEAD), self._count(FAILED)
        found["claimed"] = len(self._claims.entries)
        return +found

    def _count(self, name: str) -> int:
        return self.channel.queue_declare(name, passive=True).message_count

    def held(self) -> int:
        """How many messages are unacknowledged, as far as the management interface says so."""
        return sum(int(one.get("messages_unacknowledged") or 0) for name, one in self._list().items() if moving.is_moved(name))

    def room(self) -> int | None:
        """The bytes up to the memory alarm of the fullest node, if the management interface answers."""
        with suppress(OSError):
            names = "name,mem_limit,mem_used,mem_alarm,disk_free_alarm"
            nodes = [one for one in management(self.connection, self.environ, f"nodes?columns={names}") if "mem_used" in one]
            if any(one.get("mem_alarm") or one.get("disk_free_alarm") for one in nodes):
                return 0
            return min((max(0, one["mem_limit"] - one["mem_used"]) for one in nodes), default=None)
        return None

    def size(self) -> int:
        """The bytes of the bodies, as far as the management interface says so."""
        return sum(int(one.get("message_bytes") or 0) for name, one in self._listed.items() if moving.is_moved(name))

    # A source

    def claim(self, to: str) -> Batch | None:
        """Claim messages, by one transaction. What is delayed comes first, from the longest level: it only goes down."""
        if self._claims.entries:
            return self._former()
        token, found, size = moving.token(), list[Moving](), 0
        for place, name in self._places():
            while len(found) < AT_ONCE and size < moving.BYTES and (raw := self._claims.channel.basic_get(name)):
                found.append(self._moving(place, name, raw))
                self._claims.channel.basic_ack(raw.delivery_tag)
                size += len(found[-1].body)
        if not found:
            return None
        for number, one in enumerate(found):
            letter = asdict(one.letter) if one.letter else None
            expiration = one.properties.get("expiration")
            about = Claimed(token, to, number, len(found), one.place, one.queue, one.due, expiration, letter)
            self._claims.publish(self._message(one, {CLAIM: about._asdict()}, None), CLAIMED)
        self._commit(self._claims)
        return Batch(token, to, found, len(found))

    def _places(self) -> Iterator[tuple[Place, str]]:
        yield from (("delayed", name) for name in self._levels)
        yield from (("queue", name) for name in self._queues)
        yield from (("dead", DEAD), ("failed", FAILED))

    def _moving(self, place: Place, name: str, raw: Raw) -> Moving:
        """A message, as it was read from a queue."""
        headers, one = headers_of(raw), _read(raw, place, name)
        if place == "queue":
            return one
        if place == "delayed":
            key = str(raw.delivery_info["routing_key"])
            due = moving.due_of(headers) or _latest(key, int(name.rpartition("_")[2]))
            return replace(one, queue=self._queue_of(DELAY.sub("", key)), due=due)
        shown = SimpleNamespace(headers=headers, properties=raw.properties, delivery_tag=raw.delivery_tag)
        letter = dead.letter(cast("Message", shown))
        one.properties.pop("expiration", None)  # of the letter
        return replace(one, queue=letter.queue, letter=letter)

    def _queue_of(self, routing_key: str) -> str:
        """The queue that a delayed message is for."""
        known = (queue.name for queue in self.app.amqp.queues.values() if queue.routing_key == routing_key)
        return str(next(known, routing_key))

    def _former(self) -> Batch:
        """The claim of a former run. Some of it may be removed already."""
        found: dict[int, Moving] = {}
        for raw in self._claims.entries.values():
            about = Claimed(**headers_of(raw)[CLAIM])
            letter = letter_from(about.letter) if about.letter else None
            one = replace(_read(raw, about.place, about.queue), due=about.due, letter=letter)
            one.properties.update({"expiration": about.expiration} if about.expiration else {})
            found[about.number] = one
        return Batch(about.token, about.to, [found[number] for number in sorted(found)], about.of)

    def drop(self, batch: Batch) -> None:
        """Remove the claim. Raises BusyError if the broker does not deliver it."""
        if not self._claims.await_(lambda: len(self._claims.entries) >= len(batch.messages)):
            raise moving.BusyError(f"the broker does not deliver the queue {CLAIMED}")
        self._claims.remove(list(self._claims.entries))

    # A target

    def prepare(self, queues: Iterable[str]) -> None:
        """Declare queues, as the app does. Refuses those with a limit."""
        for name in queues:
            self._reach(name)

    def noted(self, token: str) -> bool:
        """Whether the note is there."""
        return token in map(_token, self._notes.entries.values())

    def store(self, batch: Batch) -> None:
        """Store a batch, by one transaction."""
        messages = list(map(_fitting, batch.messages))
        delayed = {one.queue: self._reach(one.queue) for one in messages if one.letter is None}
        for one in messages:
            if one.letter is not None:
                self._store_letter(one, one.letter)
            elif delayed[one.queue] and (left := int((one.due or moving.due_of(one.headers)) - time.time())) > 0:
                key = calculate_routing_key(min(left, LONGEST), self.app.amqp.queues[one.queue].routing_key)
                self._notes.publish(self._message(one, {}, None), key, level_name(MAX_LEVEL))
            else:
                self._notes.publish(self._message(one, {}, _expiration(one)), one.queue)
        note = self.channel.prepare_message(b"", headers={TOKEN: batch.token}, properties={"expiration": WEEK})
        self._notes.publish(note, NOTED)
        try:
            gone = self._commit(self._notes)
        except PreconditionFailed as error:  # it has stored the others, and closed the channel
            del self._notes
            self.forget(batch.token)
            some = f"RabbitMQ has refused some of {len(messages)} messages ({error.reply_text}); others of these may run twice"
            raise NoRoomError(some) from error
        self._notes.await_(lambda: self.noted(batch.token))
        if gone:
            self.forget(batch.token)
            names = ", ".join(sorted(gone))
            refuse(
                f"queues were deleted meanwhile ({names}): run the same again; others of {len(messages)} tasks may run twice"
            )

    def _store_letter(self, one: Moving, letter: DeadLetter) -> None:
        left = ceil(1_000 * (moving.stored_at(letter) + self._expires - time.time()))
        name, expires = (FAILED, str(max(1, left))) if one.place == "failed" else (DEAD, None)
        self._notes.publish(self._message(one, {NOTE: asdict(letter)}, expires), name)

    def _reach(self, name: str) -> bool:
        """Make sure that a queue is there, declared as the app does. Returns whether delayed messages reach it."""
        if name not in self._reached:
            about = self._listed.get(name, {})
            given = {**(about.get("effective_policy_definition") or {}), **(about.get("arguments") or {})}
            for limit in LIMITS:
                if any(given.get(prefix + limit) is not None for prefix in ("", "x-")):
                    refuse(
                        f"the queue {name!r} of the target has {limit}: it refuses or drops messages; move without the limit"
                    )
            queue = self.app.amqp.queues[name]
            try:
                queue(self.connection.channel()).declare()
                self._reached[name] = queue.exchange.type != "direct"
            except PreconditionFailed as error:  # it is there, declared otherwise, as by plain Celery
                if about.get("type") == "stream" or not is_there(self.connection, name):
                    refuse(f"RabbitMQ refuses the queue {name!r} of the target: {error.reply_text}")
                self._reached[name] = False
            if self._reached[name]:
                Delayed(self.app).declare(cast("KombusConnection", self.connection), self.connection.channel(), queue)
        return self._reached[name]

    def _message(self, one: Moving, more: Headers, expiration: str | None) -> object:
        """A message, in the form that is published."""
        properties = {name: value for name, value in one.properties.items() if name in PROPERTIES} | {"delivery_mode": 2}
        properties.pop("expiration", None)
        headers = {**one.headers, **more}
        return self.channel.prepare_message(
            one.body,
            properties.pop("priority", None),
            content_type=one.content_type,
            content_encoding=one.content_encoding,
            headers=fitting(headers) if NOTE in more else headers,
            properties=properties | ({"expiration": expiration} if expiration else {}),
        )

    def _commit(self, ledger: Ledger) -> set[str]:
        """Commit. Returns the queues that are gone, with the messages for them. Raises NoRoomError."""
        if getattr(self.connection.connection, "blocked", False):
            raise NoRoomError("RabbitMQ is out of memory or disk, and accepts no message")
        return ledger.commit()

    def forget(self, token: str) -> None:
        """Remove the note."""
        self._notes.remove([tag for tag, raw in self._notes.entries.items() if _token(raw) == token])

    def close(self) -> None:
        """Close the connection."""
        self.connection.release()


def _token(raw: Raw) -> str:
    return str(headers_of(raw).get(TOKEN))


def _read(raw: Raw, place: Place, queue: str) -> Moving:
    """A message, as py-amqp has it, without what brokers and the kit have added."""
    kind, encoding = raw.properties.get("content_type"), raw.properties.get("content_encoding")
    body = body_of(cast("Message", SimpleNamespace(body=raw.body, content_encoding=encoding)))
    headers = {name: value for name, value in headers_of(raw).items() if not name.startswith((*OURS, *ADDED, CLAIM))}
    properties = {name: value for name, value in raw.properties.items() if name in PROPERTIES}
    return Moving(place, queue, body, kind, encoding, headers, properties)


def _latest(routing_key: str, level: int) -> float:
    """When a message is due at the latest that says so by its routing key alone, by the level at which it waits."""
    bits = routing_key.split(".")[MAX_LEVEL - level : MAX_LEVEL + 1]
    return time.time() + int("".join(bits), 2) if bits and set(bits) <= {"0", "1"} else 0.0


def _expiration(one: Moving) -> str | None:
    """The milliseconds until a task expires, as Celery publishes it."""
    if expires := moving.expires_of(one.headers):
        return str(max(1, ceil(1_000 * (expires - time.time()))))
    given = one.properties.get("expiration")
    return given if isinstance(given, str) and given.isdecimal() else None


def _fitting(one: Moving) -> Moving:
    """The message, with properties that AMQP has a form for. One whose headers do not fit becomes a dead letter."""
    properties = {name: value for name, value in one.properties.items() if isinstance(value, PROPERTIES.get(name, ()))}
    one = replace(one, properties=properties)
    try:
        fits = len(dumps("F", (one.headers,))) <= MOST_HEADERS
    except Exception:  # AMQP has no form for one of them
        fits = False
    if fits or one.letter:
        return one
    task_id, task = (str(one.headers.get(name) or "") for name in ("id", "task"))
    reason = f"its headers are more than RabbitMQ takes, or of another kind; {MOST_HEADERS} bytes are allowed"
    return replace(one, place="dead", letter=DeadLetter(task_id, task, one.queue, reason, moment(), 0))
