"""Faults of kombu's Redis transport, each closed by a class that stands before kombu's own: rows of celery_kit/fixes."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from time import monotonic
from typing import Any

from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

redis: Any = import_module("kombu.transport.redis")  # kombu-stubs are those of an older one


class ServerClock:
    """For a QoS: when a message was fetched is recorded by the server's clock, which is the same for all workers.

    kombu records it by the worker's wall clock, and compares it with its own when it looks for messages of dead workers: a
    worker whose clock is an hour ahead believes that all others are dead, and their tasks run twice. Between two readings of
    the server's clock the monotonic one goes on from there, which nobody sets.
    """

    #: Seconds that the server's clock is ahead of this machine's monotonic one.
    _ahead: float | None = None

    def _seen(self, time: tuple[int, int]) -> float:
        """The server's time, in seconds since 1970, from its seconds and microseconds."""
        now = time[0] + time[1] / 1e6
        self._ahead = now - monotonic()
        return now

    def append(self, message: Any, delivery_tag: str) -> None:
        this: Any = self
        info = message.delivery_info
        record = dumps([message._raw, info["exchange"], info["routing_key"]])
        with this.channel.conn_or_acquire() as client, client.pipeline() as pipe:
            now = self._seen(client.time()) if self._ahead is None else self._ahead + monotonic()
            pipe.zadd(this.unacked_index_key, {delivery_tag: now}).hset(this.unacked_key, delivery_tag, record).execute()
        virtual.QoS.append(this, message, delivery_tag)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """At every `interval`th call: restore what was fetched longer ago than the visibility timeout, `num` or all of it."""
        this: Any = self
        this._vrestore_count += 1
        if (this._vrestore_count - 1) % (interval or 1):
            return
        with this.channel.conn_or_acquire() as client:
            with client.pipeline(transaction=False) as pipe:
                time, oldest = pipe.time().zrange(this.unacked_index_key, 0, 0, withscores=True).execute()
            until = self._seen(time) - this.visibility_timeout
            if not oldest or oldest[0][1] > until:  # the rule: no need to lock the others out
                return
            with suppress(redis.MutexHeld), redis.Mutex(client, this.unacked_mutex_key, this.unacked_mutex_expire):
                limit = {"offset": start, "num": num} if num else {}
                for tag in client.zrange(this.unacked_index_key, until, 0, desc=True, byscore=True, **limit):
                    this.restore_by_tag(tag, client)


class FailedAck:
    """For a QoS: a message's place in the prefetch window is freed also where its acknowledgement fails.

    kombu frees it after Redis has taken the acknowledgement. Where that raises, as with a server that froze for longer than
    socket_timeout, Celery logs "Couldn't ack" and goes on, and the place stays taken for as long as the connection lives: with
    a prefetch count of 1 nothing is ever consumed again. The acknowledgement is sent again with the next one that goes through;
    where none does, the message is redelivered after the visibility timeout.
    """

    _not_taken: set[str]

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge; raises what the client raises, with the place free."""
        not_taken = self.__dict__.setdefault("_not_taken", set())
        this: Any = self
        try:
            super().ack(delivery_tag)  # type: ignore[misc]
        except Exception:
            not_taken.add(delivery_tag)
            virtual.QoS.ack(this, delivery_tag)
            raise
        while not_taken:
            this._remove_from_indices(tag := next(iter(not_taken))).execute()
            not_taken.discard(tag)


class RememberAddress:
    """For a Channel: it remembers its server's address.

    Celery closes a lost connection at once. When the task is over, kombu acknowledges its message on a new connection, whose
    address it looks up in the one that is gone: `AttributeError: 'NoneType' object has no attribute 'hostname'`, exit code 1.
    """

    _known: dict[bool, dict[str, Any]]

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        known = self.__dict__.setdefault("_known", {})
        transport: Any = getattr(self, "connection", None)
        if getattr(transport, "client", None) is not None:
            known[asynchronous] = super()._connparams(asynchronous)  # type: ignore[misc]
        return dict(known.get(asynchronous) or known[not asynchronous])


#: A set: the exchanges that queues are bound to, and that each of these gets a copy from.
FANOUTS = "_celery-kit.fanout"


class Fanouts:
    """For a Channel: which exchanges are fanout exchanges is recorded on the server.

    Whoever binds a queue to one writes it down, and a producer that knows nothing of the exchange reads it there; kombu takes
    an exchange that its process has not declared for a direct one (celery_kit/fixes/broadcast.py).
    """

    state: Any
    exchange_types: Any
    _fanouts: frozenset[str] = frozenset()

    def typeof(self, exchange: str, default: str = "direct") -> Any:
        if exchange in self.state.exchanges:
            return super().typeof(exchange, default)  # type: ignore[misc]
        if exchange not in self._fanouts:
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                self._fanouts = frozenset(map(bytes_to_str, client.smembers(FANOUTS)))
        return super().typeof(exchange, "fanout" if exchange in self._fanouts else default)  # type: ignore[misc]

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
        if self.typeof(exchange).type == "fanout" and exchange not in self._fanouts:
            self._fanouts |= {exchange}
            with self.conn_or_acquire() as client:  # type: ignore[attr-defined]
                client.sadd(FANOUTS, exchange)


class _Recording:
    """A client whose commands that publish are recorded, and not sent."""

    def __init__(self, client: Any, batch: Any) -> None:
        self._client, self._batch = client, batch

    def __getattr__(self, name: str) -> Any:
        return partial(self._batch.add, name) if name in ("lpush", "publish") else getattr(self._client, name)


class EarlierChannel:
    """For a Channel: what this one of the kit takes from kombu 5.7, where kombu is an earlier one.

    How often messages of dead workers are looked for is a transport option (seconds, and every how many looks); credentials of
    a provider and the expiry of bindings are not renewed.
    """

    unacked_restore_interval = 10
    unacked_restore_throttle = 10
    from_transport_options = (
        *redis.Channel.from_transport_options,
        "unacked_restore_interval",
        "unacked_restore_throttle",
    )

    def basic_publish(self, message: Any, exchange: str, routing_key: str, _publish_batch: Any = None, **options: Any) -> Any:
        """Publish; or, as kombu 5.7 does, add the commands to a batch."""
        this: Any = self
        if _publish_batch is not None:
            acquire = this.conn_or_acquire

            @contextmanager
            def recording(client: Any = None) -> Iterator[Any]:
                with acquire(client) as found:
                    yield _Recording(found, _publish_batch)

            this.conn_or_acquire = recording
        try:
            return super().basic_publish(message, exchange, routing_key, **options)  # type: ignore[misc]
        finally:
            vars(self).pop("conn_or_acquire", None)

    def _flush_brpop_reauth(self) -> None:
        """No credentials are renewed."""

    def maybe_refresh_binding_expiry(self) -> None:
        """No binding expires."""


class EarlierPoller:
    """For a MultiChannelPoller: see EarlierChannel."""

    poller: Any

    def maybe_reauth(self) -> None:
        """No credentials are renewed."""

    def maybe_refresh_binding_expiry(self) -> None:
        """No binding expires."""

    def _unregister_from_poll(self, fileno: int) -> None:
        self.poller.unregister(fileno)
