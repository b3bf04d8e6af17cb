"""Fixes for kombu's Redis transport: mixins that come before kombu's classes. They are rows of celery_kit/fixes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

if TYPE_CHECKING:
    from upstream import kombu_redis as redis
    from upstream import kombu_virtual as virtual
    from upstream.kombu_redis import Channel as KombusChannel
    from upstream.kombu_redis import QoS as KombusQoS
    from upstream.redis import Client

    from celery_kit.base.types import Callback, Headers, Options

    KombusPoller = redis.MultiChannelPoller[redis.Channel]
else:
    from kombu.transport import redis, virtual

    KombusChannel = KombusPoller = KombusQoS = object


class Batch(Protocol):
    """What kombu's channel adds the commands of a message to, in place of sending them."""

    def add(self, name: str, *args: str | bytes | int) -> object: ...


class ServerClock(KombusQoS):
    """For a QoS: record with the server's clock when a message was fetched. That clock is the same for all workers.

    kombu records the worker's wall-clock time, and compares it with its own when it looks for messages of dead workers. A
    worker whose clock is an hour ahead then takes all others for dead, and their tasks run twice. Between two readings of the
    server's clock the monotonic clock continues from the last one, because nobody sets that.
    """

    #: Seconds that the server's clock is ahead of this machine's monotonic one.
    _ahead: float | None = None

    def _seen(self, time: tuple[int, int]) -> float:
        """The server's time, in seconds since 1970, from its seconds and microseconds."""
        now = time[0] + time[1] / 1e6
        self._ahead = now - monotonic()
        return now

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Record a delivered message as unacknowledged. Raises redis-py's errors."""
        info = message.delivery_info
        record = dumps([message._raw, info["exchange"], info["routing_key"]])
        with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
            now = self._seen(client.time()) if self._ahead is None else self._ahead + monotonic()
            pipe.zadd(self.unacked_index_key, {delivery_tag: now}).hset(self.unacked_key, delivery_tag, record).execute()
        virtual.QoS.append(self, message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """At each `interval`th call: restore messages that were fetched longer ago than the visibility timeout.

        `num`: how many at most; None for all. Raises redis-py's errors.
        """
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        client: Client
        with self.channel.conn_or_acquire() as client:
            with client.pipeline(transaction=False) as pipe:
                time, oldest = pipe.time().zrange(self.unacked_index_key, 0, 0, withscores=True).execute()
            until = self._seen(time) - self.visibility_timeout
            if not oldest or oldest[0][1] > until:  # the usual case, which needs no lock
                return
            with suppress(redis.MutexHeld), redis.Mutex(client, self.unacked_mutex_key, self.unacked_mutex_expire):
                limit = {"offset": start, "num": num} if num else {}
                for tag in client.zrange(self.unacked_index_key, until, 0, desc=True, byscore=True, **limit):
                    self.restore_by_tag(tag, client)


class FailedAck(KombusQoS):
    """For a QoS: free a message's slot in the prefetch window even if its acknowledgement fails.

    kombu frees the slot after Redis has received the acknowledgement. If that raises, for instance because the server froze for
    longer than socket_timeout, Celery logs "Couldn't ack" and continues. The slot then stays occupied as long as the connection
    lives: with a prefetch count of 1, nothing is ever consumed again. Here the acknowledgement is sent again with the next one
    that succeeds. If none does, the message is redelivered after the visibility timeout.
    """

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. Raises redis-py's errors, with the slot freed."""
        failed: set[str] = self.__dict__.setdefault("_failed", set())
        try:
            super().ack(delivery_tag)
        except Exception:
            failed.add(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
            raise
        while failed:
            self._remove_from_indices(tag := next(iter(failed))).execute()
            failed.discard(tag)


class RememberAddress(KombusChannel):
    """For a Channel: remember the server's address.

    Celery closes a lost connection at once. When the task ends, kombu acknowledges its message on a new connection, and looks
    the address up in the closed one: `AttributeError: 'NoneType' object has no attribute 'hostname'`, exit code 1.
    """

    def _connparams(self, asynchronous: bool = False) -> Options:
        known: dict[bool, Options] = self.__dict__.setdefault("_known", {})
        transport = getattr(self, "connection", None)
        if getattr(transport, "client", None) is not None:
            known[asynchronous] = super()._connparams(asynchronous)
        return dict(known.get(asynchronous) or known[not asynchronous])


#: The key of a set: the fanout exchanges to which queues are bound.
FANOUTS = "_celery-kit.fanout"


class Fanouts(KombusChannel):
    """For a Channel: record on the server which exchanges are fanout exchanges.

    A process that binds a queue to one records it, and a producer that has not declared the exchange reads it. kombu treats an
    exchange that its process has not declared as a direct exchange (celery_kit/fixes/broadcast.py).
    """

    _fanouts: frozenset[str] = frozenset()

    def typeof(self, exchange: str, default: str = "direct") -> virtual.ExchangeType:
        """The type of an exchange, or `default` if nobody knows it. Raises redis-py's errors."""
        if exchange in self.state.exchanges:
            return super().typeof(exchange, default)
        if exchange not in self._fanouts:
            with self.conn_or_acquire() as client:
                self._fanouts = frozenset(map(bytes_to_str, client.smembers(FANOUTS)))
        return super().typeof(exchange, "fanout" if exchange in self._fanouts else default)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)
        if self.typeof(exchange).type == "fanout" and exchange not in self._fanouts:
            self._fanouts |= {exchange}
            with self.conn_or_acquire() as client:
                client.sadd(FANOUTS, exchange)


class _Recording:
    """A client that records the commands that publish, and does not send them."""

    def __init__(self, client: Client, batch: Batch) -> None:
        self._client, self._batch = client, batch

    def __getattr__(self, name: str) -> Callback:
        found: Callback = getattr(self._client, name)
        return partial(self._batch.add, name) if name in ("lpush", "publish", "eval") else found


class EarlierChannel(KombusChannel):
    """For a Channel of kombu before 5.7: what the kit's channel uses of kombu 5.7.

    Transport options say how often messages of dead workers are looked for: an interval in seconds, and a number of intervals.
    A provider's credentials and the expiry of bindings are not renewed.
    """

    unacked_restore_interval = 10
    unacked_restore_throttle = 10
    from_transport_options = (
        *redis.Channel.from_transport_options,
        "unacked_restore_interval",
        "unacked_restore_throttle",
    )

    def basic_publish(
        self, message: Headers, exchange: str, routing_key: str, _publish_batch: Batch | None = None, **options: object
    ) -> object:
        """Publish a message, or add its commands to a batch as kombu 5.7 does."""
        if _publish_batch is not None:
            acquire, batch = self.conn_or_acquire, _publish_batch

            @contextmanager
            def recording(client: Client | None = None) -> Iterator[_Recording]:
                with acquire(client) as found:
                    yield _Recording(found, batch)

            vars(self)["conn_or_acquire"] = recording
        try:
            return super().basic_publish(message, exchange, routing_key, **options)
        finally:
            vars(self).pop("conn_or_acquire", None)

    def _flush_brpop_reauth(self) -> None:
        """Do nothing: credentials are not renewed."""

    def maybe_refresh_binding_expiry(self) -> None:
        """Do nothing: bindings do not expire."""


class EarlierPoller(KombusPoller):
    """For a MultiChannelPoller: see EarlierChannel."""

    def maybe_reauth(self) -> None:
        """Do nothing: credentials are not renewed."""

    def maybe_refresh_binding_expiry(self) -> None:
        """Do nothing: bindings do not expire."""

    def _unregister_from_poll(self, fileno: int) -> None:
        self.poller.unregister(fileno)
