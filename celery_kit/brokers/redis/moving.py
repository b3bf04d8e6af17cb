"""Redis as an end of a move (celery_kit/brokers/moving.py): one script claims a batch, one stores it.

What is claimed is a list: a token, the target's name, and four parts of each message. The note of a batch that was stored stays
for a week, so that a run that was frozen for long does not store it again.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from time import time
from typing import TYPE_CHECKING, cast

from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis.exceptions import OutOfMemoryError, ResponseError

from celery_kit.base.lua import cannot_write, script
from celery_kit.base.messages import DEAD, DELIVERIES, FAILED
from celery_kit.brokers import moving
from celery_kit.brokers.contract import DeadLetter, moment, name_of
from celery_kit.brokers.moving import Batch, Moving, NoRoomError, Place
from celery_kit.brokers.redis import dead, delayed
from celery_kit.brokers.redis.failed import INDEX, client_of, record_of

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.types import Connection, Headers
    from celery_kit.brokers.redis.leases import Channel

CLAIM, STORE, DROP = script(__name__, "claim"), script(__name__, "store"), script(__name__, "drop")
#: The keys of the claim, of this end's name, and how those of notes begin.
CLAIMED, NAME, NOTED = (f"_{moving.PREFIX}{of}" for of in ("", ".name", ".noted:"))
#: Seconds for which a note stays.
WEEK = 604_800
#: Properties that belong to the transport, and the headers that it adds.
OWN, ADDED = ("delivery_info", "delivery_tag", "body_encoding"), (DELIVERIES, "redelivered")


class RedisEnd:
    """See moving.End."""

    def __init__(self, app: Celery, connection: Connection, _: Mapping[str, str], queues: Sequence[str]) -> None:
        self.app, self.channel = app, cast("Channel", connection.default_channel)
        self.client, self.prefix = client_of(self.channel), self.channel.global_keyprefix
        self._expires = int(app.conf.get("failed_expires") or WEEK)
        self._restored = False
        bound = (
            member.decode("utf-8", "replace").split(self.channel.sep)[-1]
            for key in self.client.scan_iter(f"{self.prefix}_kombu.binding.*", 1_000)
            for member in self.client.smembers(key)
        )
        names = set(queues) or {*app.amqp.queues, str(app.conf.task_default_queue), *bound}
        steps = self.channel.priority_steps
        self._lists = {
            self._key(self.channel._q_for_pri(name, step)): name
            for name in sorted(filter(moving.is_moved, names))
            for step in steps
        }

    def _key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def _restore(self) -> None:
        """Requeue what dead workers hold, and store what waits to be dead-lettered, as a worker does that starts."""
        self._restored = True
        dead.collect(self.app, self.channel, self.client)
        self.channel.hold()
        if lease := self.channel.lease:
            lease.keep(self.channel)
        self.channel.qos.restore_visible(interval=1)

    def name(self) -> str:
        """A name that the database keeps."""
        self.client.execute_command("SET", self._key(NAME), uuid(), "NX")
        return str(cast("bytes", self.client.get(self._key(NAME))).decode())

    def same(self, other: moving.End) -> bool:
        """Whether another end is in this database, under this prefix."""
        return self.name() == other.name()

    def counts(self) -> Counter[str]:
        """See End. Asks for all of them at once."""
        pipe = self.client.pipeline(transaction=False)
        for key in self._lists:
            pipe.llen(key)
        pipe.zcard(self._key(delayed.DELAYED)).hlen(self._key(DEAD)).hlen(self._key(FAILED)).llen(self._key(CLAIMED))
        answers = pipe.execute()
        found: Counter[str] = Counter()
        for number, name in zip(answers, [*self._lists.values(), *moving.PLACES[1:]], strict=False):
            found[name] += number
        found["claimed"] = max(0, answers[-1] - 2) // 4
        return +found

    def held(self) -> int:
        """How many messages are unacknowledged."""
        return int(self.client.execute_command("HLEN", self._key(self.channel.unacked_key)))

    def room(self) -> int | None:
        """The bytes up to the server's limit, if it has one."""
        info = self.client.info()
        return max(0, most - info["used_memory"]) if (most := info.get("maxmemory")) else None

    def size(self) -> int:
        """The bytes that the lists and the hashes take."""
        keys = [*self._lists, *map(self._key, (delayed.DELAYED, DEAD, FAILED, CLAIMED))]
        return sum(self.client.execute_command("MEMORY", "USAGE", key) or 0 for key in keys)

    def claim(self, to: str) -> Batch | None:
        """Claim messages, by one script. A queue's most urgent ones come first."""
        if not self._restored:
            self._restore()
        keys = map(self._key, (CLAIMED, delayed.DELAYED, DEAD, FAILED, INDEX))
        lists = list(self._lists)
        words: tuple[str | int, ...] = (*keys, *lists, moving.token(), to, moving.MOST, moving.BYTES)
        found = cast("list[bytes]", self.client.eval(CLAIM, 5 + len(lists), *words))
        if not found:
            return None
        token, target, *parts = found
        messages = [self._read(*four) for four in zip(*[iter(parts)] * 4, strict=True)]
        return Batch(token.decode(), target.decode(), messages, len(messages))

    def _read(self, place: bytes, name: bytes, score: bytes, item: bytes) -> Moving:
        """A message, from the parts of its claim."""
        kind = cast("Place", place.decode())
        if kind in ("dead", "failed"):
            letter, item = dead._read(self.channel, dead.tag_of(name), item)
            return self._moving(kind, letter.queue, item, letter=letter)
        if kind == "delayed":
            key, _, item = item.partition(b"\n")
            return self._moving(kind, self._queue_of(key), item, float(score) / 1_000)
        return self._moving(kind, self._queue_of(name), item)

    def _queue_of(self, key: bytes) -> str:
        text = key.decode("utf-8", "surrogateescape")
        return self._lists.get(text) or text.removeprefix(self.prefix).rsplit(self.channel.sep, 1)[0]

    def _moving(self, place: Place, queue: str, item: bytes, due: float = 0.0, letter: DeadLetter | None = None) -> Moving:
        """A message, from its item. What is not a message becomes a dead letter, as where a worker takes it."""
        try:
            payload = dead.payload_of(item)
            properties, headers = dict(payload.get("properties") or {}), dict(payload.get("headers") or {})
            body = payload.get("body") or ""
            raw = b64decode(body, validate=True) if properties.get("body_encoding") == "base64" else str(body).encode()
            return Moving(
                place,
                queue,
                raw,
                _text(payload.get("content-type")),
                _text(payload.get("content-encoding")),
                {name: value for name, value in headers.items() if name not in ADDED},
                {name: value for name, value in properties.items() if name not in OWN},
                due,
                letter,
            )
        except Exception as error:  # anything can be in a list
            why = " ".join(str(error).split())[: dead.MOST_REASON]
            letter = letter or DeadLetter(name_of(item), "", queue, f"no message: {why}", moment(), 1)
            kind: Place = place if place in ("dead", "failed") else "dead"
            return Moving(kind, queue, item, None, None, {}, {}, 0.0, letter)

    def drop(self, batch: Batch) -> None:
        """Delete the claim."""
        self.client.eval(DROP, 1, self._key(CLAIMED), batch.token)

    def prepare(self, queues: Iterable[str]) -> None:
        """Nothing: a list is there once something is in it. Of the keys of other kinds the script complains."""

    def noted(self, token: str) -> bool:
        """Whether the note is there."""
        return bool(self.client.exists(self._key(NOTED + token)))

    def store(self, batch: Batch) -> None:
        """Store a batch, by one script."""
        keys = map(self._key, (NOTED + batch.token, delayed.DELAYED, delayed.MOVERS, DEAD, FAILED, INDEX))
        words = [word for one in batch.messages for word in self._words(one)]
        try:
            self.client.eval(STORE, 6, *keys, WEEK, self._expires, *words)
        except (OutOfMemoryError, ResponseError) as error:
            if isinstance(error, OutOfMemoryError) or cannot_write(error):
                raise NoRoomError(f"Redis refuses to write ({str(error).split('. ')[0]})") from error
            raise

    def _words(self, one: Moving) -> Iterator[str | bytes]:
        """A message, as the script takes it."""
        item, tag = _item(one)
        due = one.due or moving.due_of(one.headers)
        if one.letter is None:
            payload = {"properties": {"priority": one.properties.get("priority")}}
            step = self.channel._get_message_priority(payload, reverse=False)
            yield "delayed" if due > time() and "\n" not in one.queue else "queue"
            yield self._key(self.channel._q_for_pri(one.queue, step))
            yield str(int(due * 1_000 + 0.999))
            yield item
        else:
            yield one.place
            yield one.letter.id if one.place == "failed" else tag
            yield f"{moving.stored_at(one.letter):.6f}"
            yield record_of(item, one.letter)

    def forget(self, token: str) -> None:
        """Nothing: the note expires."""

    def close(self) -> None:
        """End the lease by which this process has requeued what dead workers held."""
        self.channel.close()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _item(one: Moving) -> tuple[bytes, str]:
    """The item of a list, and its tag. What is not a message is an item as it is."""
    if one.letter and not one.headers and not one.properties and one.content_type is None:
        return one.body, name_of(one.body)
    tag = uuid()
    about = {"delivery_info": {"exchange": "", "routing_key": one.queue}, "body_encoding": "base64", "delivery_tag": tag}
    payload: Headers = {
        "body": b64encode(one.body).decode(),
        "content-encoding": one.content_encoding,
        "content-type": one.content_type,
        "headers": one.headers,
        "properties": {"delivery_mode": 2, "priority": 0, **one.properties, **about},  # at the end: fetch.lua
    }
    return dumps(payload).encode(), tag
