"""What is set aside on Redis: a hash, by delivery tag; and the parts of the transport that count deliveries and lose nothing.

RabbitMQ counts how often a message came back, and keeps what is rejected (`rabbitmq_dead.py`). kombu 5.7.0's Redis transport
does neither, and drops on the way what it cannot read: such an item raises in the worker's event loop, after it was popped.
Source: kombu/transport/redis.py, Channel._brpop_read, _do_restore_message; QoS.reject.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import import_module
from queue import Empty
from typing import Any

from kombu.exceptions import InconsistencyError, OperationalError
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis.exceptions import ResponseError

from celery_kit.base.messages import DEAD, DELIVERIES
from celery_kit.brokers.contract import Action, DeadLetter

redis: Any = import_module("kombu.transport.redis")  # kombu-stubs are those of an older one


#: A message's tag, in a text that is no JSON to Python.
TAG = re.compile(rb'"delivery_tag": "([^"]+)"')
#: What the fetch sets aside by itself.
NO_MESSAGE = "it has no delivery tag, or is no JSON"
logger = logging.getLogger(__name__)


class MalformedError(ValueError):
    """An item of a queue that is no message of kombu's."""


class Message(virtual.Message):
    """kombu's, which says what is wrong with an item before anything is done with it."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            info = payload["properties"]["delivery_info"]
            parts = info["exchange"], info["routing_key"], payload["properties"]["delivery_tag"]
            if not all(isinstance(part, str) for part in parts) or not isinstance(payload.get("headers") or {}, dict):
                raise MalformedError("its headers, its tag or its address are of the wrong kind")
            super().__init__(payload, channel=channel, **kwargs)
        except MalformedError:
            raise
        except Exception as error:
            raise MalformedError(f"{type(error).__name__}: {error}") from error


def addressed(payload: Any, queue: str) -> Any:
    """An item with an address, where its sender left that out or null: kombu reads it, and goes by it when it is restored."""
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
    channel: "Channel"

    def restore_unacked(self, client: Any = None) -> None:
        # A worker that stops hands back what it holds. That says nothing about the messages.
        self.channel.counts_deliveries = False
        try:
            super().restore_unacked(client)
        finally:
            self.channel.counts_deliveries = True

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue and self._delivered and (message := self._delivered.get(delivery_tag)):
            put(self.channel, message, letter_of(message, "rejected by its task, without requeue"))
        super().reject(delivery_tag, requeue)


class Channel(redis.Channel):
    """kombu's, which counts deliveries, and sets aside what cannot be read."""

    Message = Message
    QoS = QoS
    counts_deliveries = True

    def deliver_raw(self, item: bytes, queue: str) -> None:
        """Deliver an item that was popped off a queue; one that is no message is set aside."""
        try:
            payload = loads(bytes_to_str(item))
            if not isinstance(payload, dict):
                raise MalformedError(f"{type(payload).__name__} in place of a message")
        except ValueError as error:
            return put_raw(self, item, queue, error)
        try:
            self.connection._deliver(addressed(payload, queue), queue)
        except MalformedError as error:
            put_raw(self, item, queue, error)
            about = payload.get("properties")
            if isinstance(about, dict) and isinstance(tag := about.get("delivery_tag"), str):
                qos: Any = self.qos  # which has recorded it already, where that is part of the fetch
                qos._remove_from_indices(tag).execute()

    def can_deliver(self, item: bytes, queue: str) -> bool:
        """Whether `deliver_raw` can, of an item that the fetch has not found whole."""
        try:
            self.Message(addressed(loads(bytes_to_str(item)), queue), channel=self)
        except (ValueError, AttributeError):
            return False
        return True

    def take_back(self, item: bytes, key: str, to_it: bool = False) -> None:
        """Take an item of the list `key` that can be delivered from where the fetch has set it aside."""
        with self.conn_or_acquire() as client, client.pipeline() as pipe:
            if to_it:
                pipe.rpush(key, item)
            pipe.hdel(DEAD, name_of(item)).lrem(f"{self.global_keyprefix}{key}.malformed", 1, item).execute()

    def _brpop_read(self: Any, **options: Any) -> bool:  # kombu's own, with deliver_raw
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
        self: Any, payload: Any, exchange: str, routing_key: str, pipe: Any, leftmost: bool = False
    ) -> None:
        # kombu logs and drops a message whose headers are null.
        headers = payload["headers"] = dict(payload.get("headers") or {})
        if self.counts_deliveries:
            headers[DELIVERIES] = int(headers.get(DELIVERIES) or 0) + 1
        super()._do_restore_message(payload, exchange, routing_key, pipe, leftmost)


def letter_of(message: Any, reason: str) -> DeadLetter:
    """What a message says of itself, with the reason for which it is set aside."""
    headers = message.headers
    return DeadLetter(
        id=str(headers.get("id") or message.properties.get("correlation_id") or message.delivery_tag),
        task=str(headers.get("task") or ""),
        queue=queue_of(message),
        reason=reason,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        deliveries=int(headers.get(DELIVERIES) or 0) + 1,
    )


def queue_of(message: Any) -> str:
    info = message.delivery_info
    try:
        queues = message.channel._lookup(info["exchange"], info["routing_key"])
    except InconsistencyError:  # its binding is gone
        queues = []
    return str(next(iter(queues), info["routing_key"]))


def put(channel: Any, message: Any, letter: DeadLetter) -> None:
    """Keep a message. Its delivery tag is its name there: set aside twice, it is there once."""
    _keep(channel, message.delivery_tag, dumps(message._raw).encode(), letter)


def name_of(item: bytes) -> str:
    """What an item that has no tag is called among the dead letters."""
    return hashlib.sha1(item).hexdigest()[:12]


def put_raw(channel: Any, item: bytes, queue: str, error: Exception) -> None:
    name = name_of(item)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    _keep(channel, name, item, DeadLetter(name, "", queue, f"no message: {error}", when, 1))


def _keep(channel: Any, name: str, item: bytes, letter: DeadLetter) -> None:
    record = {"letter": asdict(letter), "item": item.decode("utf-8", "surrogateescape")}
    with channel.conn_or_acquire() as client:
        client.hset(DEAD, name, json.dumps(record))


def collect(app: Any, channel: Any, client: Any) -> None:
    """Put among the dead letters what the fetch could not, or an earlier version was killed at: `<list>.malformed`."""
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


def _read(channel: Any, name: str, record: bytes) -> tuple[DeadLetter, bytes]:
    """A letter and its item. The fetch's script notes of an item only the list that it came from, and when."""
    try:
        about = json.loads(record.decode("utf-8", "surrogateescape"))
        item: bytes = about["item"].encode("utf-8", "surrogateescape")
        if came_from := about.get("list"):
            queue = str(came_from).removeprefix(channel.global_keyprefix).rsplit(channel.sep, 1)[0]
            when = datetime.fromtimestamp(int(about["at"]), UTC).isoformat(timespec="seconds")
            return DeadLetter(name, "", queue, f"no message: {NO_MESSAGE}", when, 1), item
        letter = DeadLetter(**about["letter"])
        if not isinstance(letter.when, str):
            raise TypeError("it has no time")
        return letter, item
    except Exception as error:  # whatever stands there
        return DeadLetter(name, "", "", f"its record cannot be read: {type(error).__name__}: {error}", "", 0), record


class RedisDeadLetters:
    def prepare(self, app: Any) -> None:
        """A hash is made by its first field; but some items may be on their way there."""
        with app.connection_for_write() as connection, connection.default_channel.conn_or_acquire() as client:
            try:
                collect(app, connection.default_channel, client)
            except ResponseError as error:
                logger.warning("what waits to be set aside was not looked at: %s", error)

    def put(self, app: Any, message: Any, letter: DeadLetter) -> None:
        put(message.channel, message, letter)

    def queue_of(self, message: Any, by_tag: Mapping[str, str]) -> str:
        return queue_of(message)

    def each(self, app: Any, decide: Callable[[DeadLetter], Action]) -> None:
        with app.connection_for_read() as connection, connection.default_channel.conn_or_acquire() as client:
            channel = connection.default_channel
            collect(app, channel, client)
            found = client.hgetall(f"{channel.global_keyprefix}{DEAD}")  # kombu puts its prefix before HSET's key, not here
            letters = [(name, *_read(channel, bytes_to_str(name), record)) for name, record in found.items()]
            failed = ""
            for name, letter, item in sorted(letters, key=lambda one: one[1].when):
                action = decide(letter)
                if action == "retry" and not letter.queue:
                    failed = f"{letter.id}: {letter.reason}"
                    continue
                if action == "retry":
                    self._send_back(channel, client, letter.queue, item)
                if action != "keep":
                    client.hdel(DEAD, name)
            if failed:
                raise OperationalError(failed)

    def _send_back(self, channel: Any, client: Any, queue: str, item: bytes) -> None:
        try:
            payload = loads(item.decode())
            (payload.get("headers") or {}).pop(DELIVERIES, None)
            channel._put(queue, payload)
        except (ValueError, AttributeError, KeyError, TypeError):  # as it came
            client.lpush(queue, item)
