"""Dead letters on Redis: a hash, by delivery tag. Its channel counts deliveries, and dead-letters what it cannot read.

RabbitMQ counts how often a message is redelivered, and dead-letters rejected messages. kombu 5.7.0's Redis transport does
neither, and loses what it cannot read: such an item raises in the worker's event loop after it was popped.
Source: kombu/transport/redis.py, Channel._brpop_read, _do_restore_message; QoS.reject.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from queue import Empty
from typing import TYPE_CHECKING, cast

from kombu.exceptions import InconsistencyError, OperationalError
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ResponseError

from celery_kit.base import security
from celery_kit.base.messages import DEAD, DELIVERIES, FAILED, earlier, plain
from celery_kit.base.sizes import too_large
from celery_kit.brokers.contract import REPLAYED, Action, DeadLetter, letter_from, moment, name_of, unreadable
from celery_kit.brokers.redis.failed import INDEX, SEND_BACK, RedisFailedTasks, client_of, record_of

if TYPE_CHECKING:
    from celery import Celery
    from kombu import Connection
    from upstream import kombu_redis as redis
    from upstream import kombu_virtual as virtual
    from upstream.redis import Client, Pipeline

    from celery_kit.base.signing import Signer
    from celery_kit.base.types import Connection as AnyConnection
    from celery_kit.base.types import Headers
    from celery_kit.base.types import Message as AnyMessage
else:
    from kombu.transport import redis, virtual

#: A message's tag, in a text that Python cannot parse as JSON.
TAG = re.compile(rb'"delivery_tag"\s*:\s*("(?:[^"\\]|\\.)+")')
#: An item may be so many times as large as its body, which is in base64.
ENVELOPE = 2
#: The characters of a reason.
MOST_REASON = 500
#: The reason of what the fetch's script dead-letters.
NO_MESSAGE = "it has no delivery tag, or is no JSON"
logger = logging.getLogger(__name__)


def tag_of(tag: bytes) -> str:
    """A tag that the server has recorded, as a text; it may be no UTF-8."""
    return tag.decode("utf-8", "surrogateescape")


def recorded(tag: str) -> bytes:
    """The reverse of `tag_of`."""
    return tag.encode("utf-8", "surrogateescape")


def tags_in(item: bytes) -> set[str]:
    """The tags under which the server may have recorded an item that Python cannot parse."""
    found = set()
    for quoted in map(tag_of, TAG.findall(item)):
        with suppress(ValueError):  # no JSON, or a lone surrogate, which the server does not read either
            tag = json.loads(quoted, strict=False)
            recorded(tag)
            found.add(str(tag))
    return found


class MalformedError(ValueError):
    """An item of a queue is not a message of kombu's."""


class Message(virtual.Message):
    """A message whose item is checked first. Raises MalformedError, with what is wrong with it."""

    def __init__(self, payload: Headers, channel: object = None, **kwargs: object) -> None:
        try:
            info = payload["properties"]["delivery_info"]
            address = isinstance(info["exchange"], str) and isinstance(info["routing_key"], str)
            tag, headers = payload["properties"]["delivery_tag"], payload.get("headers") or {}
            if not (address and isinstance(tag, str) and isinstance(headers, dict)):
                raise MalformedError("its headers, its tag or its address are of the wrong kind")
            f"{tag}{info['exchange']}{info['routing_key']}".encode()  # these are sent to the server again
            super().__init__(payload, channel=channel, **kwargs)
        except MalformedError:
            raise
        except Exception as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error


def payload_of(item: bytes) -> Headers:
    """The message that an item of a list is. Raises MalformedError, or an error of the decoder, for another item."""
    if why := too_large(item, ENVELOPE):
        raise MalformedError(why)
    payload = loads(item.decode())
    if not isinstance(payload, dict):
        raise MalformedError(f"{type(payload).__name__} in place of a message")
    return payload


def addressed(payload: Headers, queue: str) -> Headers:
    """Add `queue` as the address of an item whose sender left it out or set it to null. Returns the item, which it changes.

    kombu reads the address, and restores a message to it.
    """
    properties = payload.get("properties")
    if isinstance(properties, dict):
        if isinstance(properties.get("delivery_tag"), int):
            properties["delivery_tag"] = str(properties["delivery_tag"])
        info = properties.get("delivery_info")
        if info is None:
            info = properties["delivery_info"] = {}
        if isinstance(info, dict):
            if info.get("exchange") is None:
                info["exchange"] = ""
            if info.get("routing_key") is None:
                info["routing_key"] = queue
    return payload


class QoS(redis.QoS):
    """The unacknowledged messages of a channel. Those that are rejected without requeue are dead-lettered."""

    channel: Channel

    def restore_unacked(self, client: Client | None = None) -> None:
        """Requeue all of them. A worker that stops does so, and it does not count as a delivery of the messages."""
        self.channel.counts_deliveries = False
        try:
            super().restore_unacked(client)
        finally:
            self.channel.counts_deliveries = True

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue or dead-letter a message. Raises redis-py's errors."""
        if not requeue and self._delivered and (message := self._delivered.get(delivery_tag)):
            put(self.channel, message, letter_of(message, "rejected by its task, without requeue"))
        super().reject(delivery_tag, requeue)


class Channel(redis.Channel):
    """kombu's channel, which also counts deliveries, and dead-letters what cannot be read."""

    Message = Message
    QoS = QoS
    #: A message that is requeued counts as delivered.
    counts_deliveries = True

    def deliver_raw(self, item: bytes, queue: str) -> None:
        """Deliver an item that was popped from `queue`, or dead-letter it if it is not a message."""
        payload: Headers = {}
        try:
            payload = payload_of(item)
            self.connection._deliver(addressed(payload, queue), queue)
        except self.connection_errors:
            raise
        except Exception as error:
            put_raw(self, item, queue, error)
            about = payload.get("properties")
            if isinstance(about, dict) and isinstance(tag := about.get("delivery_tag"), str):
                if tag in self.qos._delivered:
                    virtual.QoS.ack(self.qos, tag)
                with suppress(UnicodeEncodeError):  # a lone surrogate: no server has recorded it
                    self.qos._remove_from_indices(tag).execute()  # the fetch may have recorded it already

    def can_deliver(self, item: bytes, queue: str) -> bool:
        """Whether `deliver_raw` can deliver an item that the fetch's script could not read."""
        try:
            self.Message(addressed(payload_of(item), queue), channel=self)
        except self.connection_errors:
            raise
        except Exception:
            return False
        return True

    def take_back(self, item: bytes, key: str, to_it: bool = False) -> None:
        """Remove from the dead letters an item of the list `key` that can be delivered after all. `to_it`: requeue it."""
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            if to_it:
                pipe.rpush(key, item)
            pipe.hdel(DEAD, name_of(item)).lrem(f"{self.global_keyprefix}{key}.malformed", 1, item).execute()

    def _receive_one(self, client: Client) -> object:
        """Read a broadcast, such as a command of remote control. One that is no message would end the worker's loop."""
        try:
            return super()._receive_one(client)
        except Empty:
            raise
        except self.connection_errors:
            raise
        except Exception as error:
            why = plain(f"{type(error).__name__}: {error}"[:MOST_REASON])
            logger.error("a broadcast that is no message was dropped: %s", why)
            raise Empty from error

    def _brpop_read(self, **options: object) -> bool:  # kombu's own, with deliver_raw
        try:
            try:
                found = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not found:
                raise Empty
            queue = bytes_to_str(found[0]).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self.deliver_raw(found[1], queue)
            return True
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()

    def _do_restore_message(
        self, payload: Headers, exchange: str, routing_key: str, pipe: Pipeline, leftmost: bool = False
    ) -> None:
        """What kombu does, but a message that cannot be requeued, or whose headers are null, is not dropped."""
        headers = payload["headers"] = dict(payload.get("headers") or {}) | {"redelivered": True}
        if self.counts_deliveries:
            headers[DELIVERIES] = earlier(headers) + 1
        try:
            payload["properties"]["delivery_info"]["redelivered"] = True
            priority = self._get_message_priority(payload, reverse=False)
            lists = [self._q_for_pri(queue, priority).encode() for queue in self._lookup(exchange, routing_key)]
            if not lists:
                raise MalformedError("it cannot be requeued: no queue takes it")
        except self.connection_errors:
            raise
        except Exception as error:
            put_raw(self, dumps(payload).encode(), plain(routing_key), error)
            return
        for name in lists:
            (pipe.lpush if leftmost else pipe.rpush)(name.decode(), dumps(payload))


def letter_of(message: virtual.Message, reason: str) -> DeadLetter:
    """The dead letter for a message, by its headers, with the reason why it is dead-lettered."""
    headers = message.headers
    return DeadLetter(
        id=str(headers.get("id") or message.properties.get("correlation_id") or message.delivery_tag),
        task=str(headers.get("task") or ""),
        queue=queue_of(message),
        reason=reason,
        when=moment(),
        deliveries=earlier(headers) + 1,
    )


def queue_of(message: virtual.Message) -> str:
    """The queue that a message came from, by its address."""
    info = message.delivery_info
    try:
        queues = message.channel._lookup(info["exchange"], info["routing_key"])
    except InconsistencyError:  # its binding is gone
        queues = []
    return str(next(iter(queues), info["routing_key"]))


def put(channel: redis.Channel, message: virtual.Message, letter: DeadLetter) -> None:
    """Store a message by its delivery tag, so that storing it twice stores it once. Raises redis-py's errors."""
    _store(channel, message.delivery_tag, dumps(message._raw).encode(), letter)


def put_raw(channel: redis.Channel, item: bytes, queue: str, error: Exception) -> None:
    """Store an item of `queue` that is not a message. Raises redis-py's errors."""
    name = name_of(item)
    why = " ".join(str(error).split())[:MOST_REASON] or type(error).__name__
    _store(channel, name, item, DeadLetter(name, "", queue, f"no message: {why}", moment(), 1))


def _store(channel: redis.Channel, name: str, item: bytes, letter: DeadLetter) -> None:
    with channel.conn_or_acquire() as client:
        client.hset(DEAD, name, record_of(item, letter))


def collect(app: Celery, channel: redis.Channel, client: Client) -> None:
    """Move the items of the lists `<list>.malformed` to the dead letters. Raises redis-py's errors.

    The fetch's script writes an item there that it cannot store itself, and an earlier version may have been killed before it
    had moved one.
    """
    keys = {
        f"{channel.global_keyprefix}{channel._q_for_pri(queue, step)}.malformed": queue
        for queue in list(app.amqp.queues)
        for step in channel.priority_steps
    }
    if keys and client.exists(*keys):
        for key, queue in keys.items():
            while items := client.lrange(key, 0, 99):
                for item in items:
                    put_raw(channel, item, queue, MalformedError(NO_MESSAGE))
                    client.lrem(key, 1, item)


def _read(channel: redis.Channel, name: str, record: bytes) -> tuple[DeadLetter, bytes]:
    """A letter and its item. The fetch's script only records the list that an item came from, and the time."""
    try:
        about = json.loads(record.decode("utf-8", "surrogateescape"))
        item: bytes = about["item"].encode("utf-8", "surrogateescape")
        if came_from := about.get("list"):
            queue = str(came_from).removeprefix(channel.global_keyprefix).rsplit(channel.sep, 1)[0]
            when = moment(datetime.fromtimestamp(int(about["at"]), UTC))
            return DeadLetter(name, "", queue, f"no message: {about.get('why') or NO_MESSAGE}", when, 1), item
        return letter_from(about["letter"]), item
    except Exception as error:  # anybody can write there
        return unreadable(name, error, ""), record


def _channel(connection: Connection) -> redis.Channel:
    return cast("redis.Channel", connection.default_channel)


class RedisDeadLetters:
    """See DeadLetters."""

    def prepare(self, app: Celery) -> None:
        """Nothing has to be declared; items that wait to be stored are moved. Raises the connection's errors."""
        with app.connection_for_write() as connection, (channel := _channel(connection)).conn_or_acquire() as client:
            try:
                collect(app, channel, client)
            except ResponseError as error:
                logger.warning("items that wait to be dead-lettered were not moved: %s", error)

    def put(self, app: Celery, message: AnyMessage, letter: DeadLetter) -> None:
        """Store a message. Raises redis-py's errors."""
        put(cast("redis.Channel", message.channel), cast("virtual.Message", message), letter)

    def queue_of(self, message: AnyMessage, by_tag: Mapping[str, str]) -> str:
        """The queue that a message came from, by its address."""
        return queue_of(cast("virtual.Message", message))

    def failed(self, app: Celery, connection: AnyConnection) -> RedisFailedTasks:
        """What stores failed tasks. Raises redis-py's errors."""
        return RedisFailedTasks(app, connection.default_channel)

    def each(
        self, app: Celery, decide: Callable[[DeadLetter], Action], done: Callable[[int, int], object] = lambda *_: None
    ) -> None:
        """Call `decide` for every letter and do what it returns. Raises OperationalError at the end if one cannot be sent
        back.
        """
        with app.connection_for_read() as connection, (channel := _channel(connection)).conn_or_acquire() as client:
            collect(app, channel, client)
            client, signer = client_of(channel), security.signer(app)
            found: dict[tuple[str, bytes], DeadLetter] = {}
            for key in (f"{channel.global_keyprefix}{DEAD}", f"{channel.global_keyprefix}{FAILED}"):
                for name, record in client.hscan_iter(key, count=100):
                    found[key, name] = _read(channel, bytes_to_str(name), record)[0]
            decided = [(place, decide(found[place])) for place in sorted(found, key=lambda place: found[place].when)]
            wanted = [(*place, action) for place, action in decided if action != "keep"]
            wrong = ""
            for number, (key, name, action) in enumerate(wanted, 1):
                held = client.hget(key, name)
                if held:  # otherwise another command was quicker
                    wrong = self._end(channel, client, key, name, held, action, signer) or wrong
                done(number, len(wanted))
            if wrong:
                raise OperationalError(wrong)

    def _end(
        self,
        channel: redis.Channel,
        client: Client,
        key: str,
        name: bytes,
        record: bytes,
        action: Action,
        signer: Signer | None,
    ) -> str:
        """Send a letter back, or drop it. Returns why it cannot be sent back."""
        letter, item = _read(channel, bytes_to_str(name), record)
        keys, body = [key, f"{channel.global_keyprefix}{INDEX}"], b""
        if action == "retry":
            if not letter.queue:
                return f"{letter.id}: {letter.reason}"
            to, body = _to_send(channel, letter, item, signer)
            keys.append(f"{channel.global_keyprefix}{to}")
        client.eval(SEND_BACK, len(keys), *keys, name, body)
        return ""


def _to_send(channel: redis.Channel, letter: DeadLetter, item: bytes, signer: Signer | None) -> tuple[str, bytes]:
    """The list that the item of a letter is sent back to, and what is pushed there: signed again, if its signature held."""
    queue = letter.queue
    try:
        payload = loads(item.decode())
        if signer and letter.reason != REPLAYED:
            payload["headers"] = signer.renewed(cast("AnyMessage", Message({**payload}, channel=channel)))
        (payload.get("headers") or {}).pop(DELIVERIES, None)
        key = channel._q_for_pri(queue, channel._get_message_priority(payload, reverse=False))
        return key, dumps(payload).encode()
    except Exception:  # not a message: send it unchanged
        return queue, item
