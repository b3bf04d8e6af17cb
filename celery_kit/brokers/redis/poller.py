"""The loop's side of kombu's Redis transport: it polls the connections, and gives each channel's fetch (`fetch.py`) its turns.

Without kombu's hub (eventlet, gevent), both engines notice a free slot in the prefetch window at once, and restore the messages
of dead workers. kombu 5.7.0 waits until its poll is over, and restores messages only if that had nothing to wait for.
Source: kombu/transport/redis.py 5.7.0, MultiChannelPoller.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from queue import Empty
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING

from redis.exceptions import ResponseError

from celery_kit.base.processes import clock
from celery_kit.brokers.redis.fetch import LOOK_AGAIN, Fetcher
from celery_kit.engine.wakeup import WakeUp
from celery_kit.fixes import patched

log = logging.getLogger(__name__)
if TYPE_CHECKING:
    from upstream import kombu_redis as redis
    from upstream.kombu_hub import Hub

    from celery_kit.base.types import Callback
    from celery_kit.brokers.redis.transport import Channel

    PollerBase = redis.MultiChannelPoller[Channel]
else:
    from kombu.transport import redis

    PollerBase = patched(redis.MultiChannelPoller, "earlier_poller")

#: Seconds after which the hub makes a round in any case: kombu's timers look at expiring queues every second.
HUBS_ROUND = 0.9
#: Seconds between two checks of the leases. Each task that begins is checked as well.
KEEP = 0.05
#: Seconds by which two equal times may differ: the hub's poll counts in milliseconds.
SAME = 0.001
#: Seconds between two checks whether credentials need renewal; kombu before 5.7 does not renew them.
REAUTH = getattr(redis, "DEFAULT_REAUTH_CHECK_INTERVAL", 60)


class Poller(PollerBase):
    """kombu's poller, which also polls a WakeUp, so that any thread or greenlet can wake it."""

    #: kombu's hub, if there is one; otherwise `get` is called again and again.
    hub: Hub | None = None
    _loop: int | None = None
    _wake_up: WakeUp | None = None
    _wait = LOOK_AGAIN
    _wakes_at = 0.0  # by the hub
    _restored_at = -math.inf
    _upkept_at = _kept_at = -math.inf

    def __init__(self, drop_idle: Callable[[], object]) -> None:
        """`drop_idle` closes the process's idle connections."""
        super().__init__()
        self._drop_idle = drop_idle

    def wake(self) -> None:
        """Wake the loop, from any thread or greenlet."""
        if wake_up := self._wake_up:
            wake_up.wake()

    def wake_from_elsewhere(self) -> None:
        """Wake the loop, unless the caller is the loop itself, or there is a hub, which looks after each of its events."""
        if self.hub is None and get_ident() != self._loop:
            self.wake()

    def close(self) -> None:
        """Stop polling, and close the wake-up."""
        if self._wake_up:
            with suppress(KeyError, ValueError):
                self._unregister_from_poll(self._wake_up.fileno())
            self._wake_up.close()
            self._wake_up = None
        super().close()

    def on_poll_start(self) -> None:
        """Called when the loop is about to poll: send requests, and hand fetched messages over."""
        self._loop = get_ident()
        if self._wake_up is None and any(channel.active_queues for channel in self._channels):
            self._wake_up = WakeUp()
            self._fd_to_chan[self._wake_up.fileno()] = (None, "WAKE_UP")
            self.poller.register(self._wake_up, self.eventflags)
        if all(channel.fetcher or not channel.active_queues for channel in self._channels):
            for channel in self._channels:
                if channel.active_fanout_queues:
                    self._register_LISTEN(channel)
        else:
            super().on_poll_start()
        if (now := clock()) > self._kept_at + KEEP:
            self._kept_at = now
            self._keep_leases()
        fetching = [(channel, channel.fetcher) for channel in self._channels if channel.fetcher]
        self._wait = min([self._turn(channel, fetcher) for channel, fetcher in fetching], default=LOOK_AGAIN)
        if self.hub is not None and self._wait < HUBS_ROUND:
            self._wake_hub_in(self._wait, self.hub)

    def _keep_leases(self) -> None:
        for channel in list(self._channels):
            if channel.lease and channel.active_queues:
                with self._at_once(channel):
                    channel.lease.keep(channel)

    def _turn(self, channel: Channel, fetcher: Fetcher) -> float:
        """One channel's turn. Returns the seconds until its next one."""
        if not self._client_registered(channel, channel.client, "FETCH"):
            self._register(channel, channel.client, "FETCH")
        with self._at_once(channel):
            try:
                return fetcher.turn()
            except ResponseError as error:
                log.warning("ENGINE=fast does not work with this Redis; continuing with ENGINE=plain: %s", error)
                channel.be_plain()
        return 0.0

    @contextmanager
    def _at_once(self, channel: Channel) -> Iterator[None]:
        """If the server does not answer, close this process's idle connections too, so that none of them is waited for."""
        try:
            yield
        except channel.connection_errors:
            self._drop_idle()
            raise

    def _wake_hub_in(self, wait: float, hub: Hub) -> None:
        now = monotonic()
        # The same time, computed again in each round, is a little earlier each time: an idle worker would wake itself three
        # times a second for it.
        if not now < self._wakes_at <= now + wait + min(wait / 10, SAME):
            self._wakes_at = now + wait
            hub.call_later(wait, lambda: None)
            self.wake()  # the hub decided how long it will poll before it called this

    def _register_BRPOP(self, channel: Channel) -> None:
        if channel.fetcher is None:
            super()._register_BRPOP(channel)

    def on_readable(self, fileno: int) -> object:
        """Read what has arrived on one socket. Returns something true if messages were handed over. Raises Empty."""
        channel, kind = self._fd_to_chan.get(fileno, (None, ""))
        if kind == "WAKE_UP" and self._wake_up:
            self._wake_up.drain()
            return False
        if kind == "FETCH" and channel and channel.fetcher:
            return channel.fetcher.read()
        return super().on_readable(fileno)

    def get(self, callback: Callback, timeout: float | None = None) -> None:
        """Wait once for messages, for `timeout` seconds at most, without a hub. Raises Empty if there are none."""
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
        """Do what kombu leaves to the hub's timers, and does not do without a hub."""
        self._keep_leases()
        self.maybe_restore_messages()
        self.maybe_refresh_binding_expiry()
        if monotonic() > self._upkept_at + REAUTH:
            self._upkept_at = monotonic()
            self.maybe_check_subclient_health()
            self.maybe_reauth()

    def maybe_restore_messages(self) -> None:
        """Requeue the messages of dead workers, every `unacked_restore_interval` seconds."""
        every = min((channel.unacked_restore_interval for channel in self._channels if channel.active_queues), default=0)
        if every and monotonic() > self._restored_at + 0.9 * every:
            self._restored_at = monotonic()
            if self.hub is None:
                super().maybe_restore_messages()
                return
            channel = next(channel for channel in self._channels if channel.active_queues)  # restores those of all channels
            with self._at_once(channel):
                channel.qos.restore_visible(num=channel.unacked_restore_limit, interval=channel.unacked_restore_throttle)

    def maybe_refresh_binding_expiry(self) -> None:
        """Renew the expiry of queues as kombu does. In the hub's timer it also raises the connection's errors.

        kombu ignores them: while the server does not answer, each of the hub's timers waits for it in turn.
        """
        if self.hub is None:
            super().maybe_refresh_binding_expiry()
            return
        for channel in list(self._channels):
            with self._at_once(channel):
                try:
                    channel.maybe_refresh_binding_expiry()
                except ResponseError as error:  # a full server refuses scripts
                    log.warning("the expiry of the queues was not renewed: %s", error)
