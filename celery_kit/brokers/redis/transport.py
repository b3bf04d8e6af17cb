"""kombu's Redis transport, with AMQP's meaning of a task's priority, and on ENGINE=fast with the fetch of redis_fetch.py.

Priorities: 0 to 9, higher is more urgent, none is 0. kombu's own has it the other way round, 0 first. Each step of priorities
is a list of its own there; the worker takes from the first list that holds anything, so the order of the steps is the order of
urgency. A message is written to one of kombu's own four steps, so that a worker of plain Celery sees it too; they are read with
those between them, to which earlier releases wrote. Messages without a priority stay in the list that has the queue's plain
name. Source: kombu/transport/redis.py, Channel._brpop_start, _q_for_pri, _put.

Without kombu's hub (eventlet, gevent), on both engines: a freed place in the prefetch window is noticed at once, and the
messages of dead workers are restored. kombu 5.7.0 waits there until its poll is over, and restores only where that had nothing
to wait for.
"""

import logging
import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from queue import Empty
from threading import get_ident
from time import monotonic
from typing import Any, ClassVar
from weakref import WeakSet

from kombu.transport import virtual
from redis.exceptions import ResponseError

from celery_kit.brokers.redis import dead
from celery_kit.brokers.redis.fetch import LOOK_AGAIN, Fetcher
from celery_kit.engine.commit import commit
from celery_kit.engine.wakeup import WakeUp
from celery_kit.fixes import patched

log = logging.getLogger(__name__)
#: Seconds after which the hub makes a round in any case: kombu has it look after expiring queues each second.
HUBS_ROUND = 0.9
#: Seconds by which two moments may differ and be the same; the hub's poll counts in milliseconds.
SAME = 0.001
redis: Any = import_module("kombu.transport.redis")  # kombu-stubs are those of an older one
QoSBase: Any = patched(dead.QoS, "failed_ack", "server_clock")
ChannelBase: Any = patched(dead.Channel, "fanouts", "redis_restart", "earlier_channel")
PollerBase: Any = patched(redis.MultiChannelPoller, "earlier_poller")
#: Seconds between two looks at whether credentials are to be renewed; kombu before 5.7 does not.
REAUTH = getattr(redis, "DEFAULT_REAUTH_CHECK_INTERVAL", 60)


class QoS(QoSBase):
    """Which messages are out. On the fast engine the fetch has already recorded them, and takes their acknowledgements."""

    channel: Any
    #: The tag of the message that is being handed over, and was recorded with its fetch.
    recorded = ""

    def append(self, message: Any, delivery_tag: str) -> None:
        if delivery_tag == self.recorded:
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        fetcher = self.channel.fetcher
        try:
            if fetcher is None:
                super().ack(delivery_tag)
            else:
                virtual.QoS.ack(self, delivery_tag)
                fetcher.acknowledge(delivery_tag)
        finally:
            self.channel.after_ack()

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        super().reject(delivery_tag, requeue)
        self.channel.after_ack()

    def can_consume(self) -> bool:
        fetcher, window = self.channel.fetcher, self.prefetch_count
        return super().can_consume() if fetcher is None else not window or self.held < window + fetcher.throughput.ahead

    @property
    def held(self) -> int:
        """Messages whose tasks wait or run."""
        return len(self._delivered or ()) - len(self._dirty or ()) - commit.done

    def restore_unacked_once(self, stderr: Any = None) -> None:
        if fetcher := self.channel.fetcher:
            fetcher.flush()
        super().restore_unacked_once(stderr)


class Channel(ChannelBase):
    QoS = QoS
    #: Those that are read, the most urgent first.
    priority_steps = list(range(9, -1, -1))  # noqa: RUF012  # as in kombu
    #: And written: kombu's own, or what the transport option priority_steps names.
    written = tuple(redis.PRIORITY_STEPS)
    from_transport_options = (*ChannelBase.from_transport_options, "engine", "take_ahead")
    #: As the setting ENGINE.
    engine = "plain"
    #: Messages beyond the prefetch count may be taken: celery_kit/engine/prefetch.py.
    take_ahead = True
    fetcher: Fetcher | None = None
    _own_client: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if (named := self.priority_steps) is not type(self).priority_steps:
            self.written = tuple(named)
            self.priority_steps = sorted({*named, *type(self).priority_steps}, reverse=True)

    def _get_message_priority(self, message: Any, reverse: bool = False) -> int:
        """The step that a message is written to."""
        priority: int = super()._get_message_priority(message, reverse=reverse)
        return max((int(step) for step in self.written if step <= priority), default=min(self.written))

    def priority(self, n: int) -> int:
        """The step that a message of priority `n` belongs to; kombu expects ascending steps here."""
        return max(step for step in self.priority_steps if step <= n)

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        """The client, made once for a pool of connections: kombu makes one for every message, a third of a `delay()`."""
        if asynchronous:
            return redis.Channel._create_client(self, asynchronous)
        if self._own_client is None or self._own_client.connection_pool is not self.pool:
            self._own_client = redis.Channel._create_client(self)
        return self._own_client

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **options: Any) -> Any:
        if queue not in self._fanout_queues:
            if no_ack:
                self.be_plain()
            elif self.engine == "fast" and self.fetcher is None:
                self.fetcher = Fetcher(self, self.connection.cycle.wake)
        return super().basic_consume(queue, no_ack, *args, **options)

    def be_plain(self) -> None:
        """Consume by kombu's own means from here on: what is consumed without acknowledgements must not be recorded."""
        self.engine = "plain"
        fetcher, self.fetcher = self.fetcher, None
        if fetcher:
            fetcher.hand_back()

    @property
    def prefetched(self) -> Collection[Any]:
        """Messages that were fetched, and wait for a free place in the prefetch window."""
        return self.fetcher.ready if self.fetcher else ()

    def refill(self) -> None:
        """A place is free that nobody has told the loop of."""
        if self.fetcher:
            self.fetcher.refill()

    def after_ack(self) -> None:
        """Have a loop without a hub look whether it may take another message; send what no loop will send."""
        cycle = self.connection.cycle if self.connection else None
        if cycle is None or self.closed or not self.active_queues:
            if self.fetcher:
                self.fetcher.flush()
        elif self.fetcher is None:
            cycle.wake_from_elsewhere()

    def _basic_cancel(self, consumer_tag: str) -> Any:
        answer = super()._basic_cancel(consumer_tag)
        if self.fetcher and not self.active_queues and not self._closing:
            self.fetcher.hand_back()
        return answer

    def _on_connection_disconnect(self, connection: Any) -> None:
        if self.fetcher and connection is getattr(self.__dict__.get("client"), "connection", None):
            self.fetcher.lost()
        super()._on_connection_disconnect(connection)

    def _flush_brpop_reauth(self) -> None:
        if self.fetcher is None or not self.fetcher.waits:
            super()._flush_brpop_reauth()

    def close(self) -> None:
        if self.fetcher and not self._closing:
            with suppress(*self.connection_errors):
                self.fetcher.hand_back()
        super().close()


class Poller(PollerBase):
    """Beside kombu's connections it polls a wake-up, which wakes it from any thread or greenlet."""

    #: kombu's hub, where there is one; elsewhere `get` is called again and again.
    hub: Any = None
    _loop: int | None = None
    _wake_up: WakeUp | None = None
    _wait = LOOK_AGAIN
    _wakes_at = 0.0  # by the hub
    _restored_at = -math.inf
    _upkept_at = -math.inf

    def wake(self) -> None:
        if wake_up := self._wake_up:
            wake_up.wake()

    def wake_from_elsewhere(self) -> None:
        """Ring, unless it is the loop itself that asks, or there is a hub: that looks after each of its events."""
        if self.hub is None and get_ident() != self._loop:
            self.wake()

    def close(self) -> None:
        if self._wake_up:
            with suppress(KeyError, ValueError):
                self._unregister_from_poll(self._wake_up.fileno())
            self._wake_up.close()
            self._wake_up = None
        super().close()

    def on_poll_start(self) -> None:
        self._loop = get_ident()
        if self._wake_up is None and any(channel.active_queues for channel in self._channels):
            self._wake_up = WakeUp()
            self._fd_to_chan[self._wake_up.fileno()] = (None, "WAKE_UP")
            self.poller.register(self._wake_up, self.eventflags)
        super().on_poll_start()
        self._wait = min([self._turn(channel) for channel in list(self._channels) if channel.fetcher], default=LOOK_AGAIN)
        if self.hub is not None and self._wait < HUBS_ROUND:
            self._wake_hub_in(self._wait)

    def _turn(self, channel: Any) -> float:
        """One channel's turn; gives the seconds until its next one."""
        if not self._client_registered(channel, channel.client, "FETCH"):
            self._register(channel, channel.client, "FETCH")
        with self._at_once(channel):
            try:
                return float(channel.fetcher.turn())
            except ResponseError as error:
                log.warning("ENGINE=fast cannot be used with this Redis, plain is: %s", error)
                channel.be_plain()
        return 0.0

    @contextmanager
    def _at_once(self, channel: Any) -> Iterator[None]:
        """Where the server does not answer: no other of this process's connections is waited for in turn."""
        try:
            yield
        except channel.connection_errors:
            Transport.drop_idle()
            raise

    def _wake_hub_in(self, wait: float) -> None:
        now = monotonic()
        # The same moment, worked out anew in each round, is a little earlier each time: an idle worker would wake itself
        # three times a second for it.
        if not now < self._wakes_at <= now + wait + min(wait / 10, SAME):
            self._wakes_at = now + wait
            self.hub.call_later(wait, lambda: None)
            self.wake()  # the hub has decided how long it will poll before it asked us

    def _register_BRPOP(self, channel: Any) -> None:
        if channel.fetcher is None:
            super()._register_BRPOP(channel)

    def on_readable(self, fileno: int) -> Any:
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind == "WAKE_UP" and self._wake_up:
            self._wake_up.drain()
            return False
        if kind == "FETCH" and channel.fetcher:
            return channel.fetcher.read()
        return super().on_readable(fileno)

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """One wait for messages, where there is no hub. Raises Empty."""
        self._upkeep()
        if not any(channel.fetcher for channel in self._channels):
            super().get(callback, timeout)
            return
        self._in_protected_read = True
        some = False
        try:
            self.on_poll_start()
            for fileno, _ in self.poller.poll(self._wait if timeout is None else min(self._wait, timeout)) or ():
                with suppress(Empty):
                    some = bool(self.on_readable(fileno)) or some
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()
        if not some:
            raise Empty

    def _upkeep(self) -> None:
        """What kombu has the hub's timers do, and leaves undone without a hub."""
        self.maybe_restore_messages()
        self.maybe_refresh_binding_expiry()
        if monotonic() > self._upkept_at + REAUTH:
            self._upkept_at = monotonic()
            self.maybe_check_subclient_health()
            self.maybe_reauth()

    def maybe_restore_messages(self) -> None:
        """Give the messages of dead workers back to their queues, every `unacked_restore_interval` seconds."""
        every = min((channel.unacked_restore_interval for channel in self._channels if channel.active_queues), default=0)
        if every and monotonic() > self._restored_at + 0.9 * every:
            self._restored_at = monotonic()
            if self.hub is None:
                super().maybe_restore_messages()
                return
            channel = next(channel for channel in self._channels if channel.active_queues)  # it restores those of all
            with self._at_once(channel):
                channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=channel.unacked_restore_throttle)

    def maybe_refresh_binding_expiry(self) -> None:
        """As kombu does, but by the hub's timer, as above, it says so when the connection is lost.

        kombu does not, and on a connection that is dead and tells nobody each of the hub's timers waits for the server in turn.
        """
        if self.hub is None:
            super().maybe_refresh_binding_expiry()
            return
        for channel in list(self._channels):
            with self._at_once(channel):
                try:
                    channel.maybe_refresh_binding_expiry()
                except ResponseError as error:  # a server that is full refuses scripts
                    log.warning("the queues' expiry was not put off: %s", error)


class Transport(redis.Transport):
    Channel = Channel
    #: Those of this process.
    living: ClassVar["WeakSet[Transport]"] = WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = Poller()
        self.living.add(self)

    @classmethod
    def drop_idle(cls) -> None:
        """Close the connections that idle: they may be as dead as the one on which the server did not answer."""
        for transport in list(cls.living):
            for channel in list(transport.channels):
                if channel._pool is not None:
                    channel._pool.disconnect(inuse_connections=False)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)
