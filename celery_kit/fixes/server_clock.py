"""A worker whose clock is wrong gives what others work on to somebody else, or is itself given up too soon.

kombu 5.7.0 notes by the worker's own wall clock when a message was taken, and compares that with its own when it looks for
messages of dead workers: one whose clock is set an hour ahead believes that all others are dead, and their tasks run twice.
Source: kombu/transport/redis.py, QoS.append, QoS.restore_visible.

Closed by the server's clock, which is the same for all; between two looks at it the monotonic one, which nobody sets, goes on
from there. Can go when tests/engine/test_clock.py passes without it.
"""

from contextlib import suppress
from importlib import import_module
from time import monotonic
from typing import Any

from kombu.transport import virtual
from kombu.utils.json import dumps

redis: Any = import_module("kombu.transport.redis")  # kombu-stubs are those of an older one


class ServerClock:
    """For a QoS of kombu's Redis transport, before its class."""

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
        """At every `interval`th call: give back what was taken longer ago than the visibility timeout, `num` or all of it."""
        this: Any = self
        this._vrestore_count += 1
        if (this._vrestore_count - 1) % (interval or 1):
            return
        with this.channel.conn_or_acquire() as client:
            with client.pipeline(transaction=False) as pipe:
                time, oldest = pipe.time().zrange(this.unacked_index_key, 0, 0, withscores=True).execute()
            until = self._seen(time) - this.visibility_timeout
            if not oldest or oldest[0][1] > until:  # the rule: nobody else need be kept from looking
                return
            with suppress(redis.MutexHeld), redis.Mutex(client, this.unacked_mutex_key, this.unacked_mutex_expire):
                limit = {"offset": start, "num": num} if num else {}
                for tag in client.zrange(this.unacked_index_key, until, 0, desc=True, byscore=True, **limit):
                    this.restore_by_tag(tag, client)
