"""Waits for results on Redis: a producer subscribes, and reads a result that is already stored, in one write.

Celery subscribes on one connection and reads on another, and the server serves its connections in any order. If a task ends
after the read and before the subscription, `get()` waits until its timeout. With Celery that can happen if a result is read by
its id. With the kit it could happen to every wait, because the kit subscribes later (`celery_kit/results/redis/backend.py`). A
server handles the commands of one connection in order, and with RESP3 a subscriber may read keys. So a `get()` takes one round
trip before its wait, and an unsubscription is sent with the next one. If many wait, or the URL has `protocol=2`, the read
follows the confirmed subscription. Source: celery/backends/redis.py 5.7.0, ResultConsumer; redis 8.1.0, client.py, PubSub.
Can go when tests/unit/results/redis/test_waiting.py says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING

from redis import exceptions
from redis.utils import check_protocol_version

from celery_kit.fixes import patched

if TYPE_CHECKING:
    from upstream.celery_results import RedisConsumer as CelerysConsumer
    from upstream.redis import Connection, ConnectionPool, PubSub
else:
    from celery.backends import redis
    from redis.client import PubSub

    CelerysConsumer = patched(redis.ResultConsumer, "abandoned_waits")

#: The largest number of unanswered reads: a server disconnects a subscriber whose answers pile up.
READS = 8
#: The largest number of pending unsubscriptions.
LEAVING = 100


class Subscriber(PubSub):
    """A connection that is notified of results, and reads earlier ones."""

    def __init__(self, pool: ConnectionPool, dispatcher: object) -> None:
        #: The keys of each unanswered read; and those to be read after their subscription is confirmed.
        self.reads: deque[Sequence[bytes]] = deque()
        self.unread: set[bytes] = set()
        self._leaving: list[bytes] = []
        self._asked = 0.0
        #: The protocol lets a subscriber read. A notification is a tuple then, and an answer a list.
        self._can_read = bool(check_protocol_version(pool.get_protocol(), 3))
        super().__init__(pool, push_handler_func=tuple if self._can_read else None, event_dispatcher=dispatcher)

    def reset(self) -> None:
        """Disconnect, and forget the subscriptions."""
        self._forget()
        super().reset()

    def on_connect(self, connection: Connection) -> None:
        """Subscribe again on a new connection, except to the results that it is leaving."""
        for key in self._leaving:
            self.channels.pop(key, None)
        self._forget()
        super().on_connect(connection)

    def _forget(self) -> None:
        self.reads.clear()
        self.unread.clear()
        self._leaving.clear()

    def execute_command(self, name: str, *keys: bytes) -> None:
        """Send a SUBSCRIBE or UNSUBSCRIBE, with a read of the keys. Raises redis-py's errors."""
        if name == "UNSUBSCRIBE" and len(self._leaving) + len(keys) < LEAVING:
            self._leaving += keys
            return
        commands: list[Sequence[object]] = []
        if self.connection is None:
            super().execute_command(name, *keys)  # connects
        else:
            commands += [("UNSUBSCRIBE", *self._leaving)] if self._leaving else []
            commands.append((name, *keys))
        reads = name == "SUBSCRIBE" and self._can_read and len(self.reads) + len(keys) <= READS
        if reads:
            commands.append(("MGET", *keys))
        if commands:
            connection = self.connection
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        self._leaving.clear()
        if reads:  # only now: sending may have opened a new connection, which clears the earlier ones
            self._asked = self._asked if self.reads else monotonic()
            self.reads.append(keys)
        elif name == "SUBSCRIBE":
            self.unread.update(keys)

    def answered(self) -> Sequence[bytes]:
        """The keys of the read that has just been answered."""
        self._asked = monotonic()
        return self.reads.popleft()

    def check_answers(self) -> None:
        """Raises ConnectionError if the oldest unanswered read is older than the socket's timeout."""
        patience = self.connection_pool.connection_kwargs.get("socket_timeout")
        if self.reads and patience and monotonic() > self._asked + patience:
            raise exceptions.ConnectionError(f"no answer from the results server within {patience:g} s")


class ResultConsumer(CelerysConsumer):
    """See the module."""

    _pubsub: Subscriber | None = None

    def _subscriber(self) -> Subscriber:
        server = self.backend.client
        return Subscriber(server.connection_pool, getattr(server, "_event_dispatcher", None))

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for a notification, for `timeout` seconds at most.

        The drainer of greenlets calls it before there is a subscription. A subscription has to wake it; Celery's sleeps for a
        second.
        """
        if self._pubsub is None:
            with self._locked():
                self._pubsub = self._pubsub or self._subscriber()
        super().drain_events(timeout)

    def start(self, initial_task_id: str, **options: object) -> None:
        """Connect, and subscribe to the first result. Raises redis-py's errors."""
        with self._locked():
            self._pubsub = self._subscriber()
            self._consume_from(initial_task_id)

    def cancel_for(self, task_id: str) -> None:
        """Called for every result that is deleted, whether it was subscribed to or not."""
        if self.subscribed_to:
            super().cancel_for(task_id)

    def _reconnect_pubsub(self) -> None:
        with self._locked():
            self._pubsub = None
            self.backend.client.connection_pool.reset()
            self._read_now(self.subscribed_to)  # as Celery does: an unavailable server is noticed here
            self.subscribed_to -= self._pending_unsubscribe
            self._pending_unsubscribe.clear()
            self._pubsub = self._subscriber()
            if self.subscribed_to:
                self._pubsub.subscribe(*self.subscribed_to)

    def on_wait_for_pending(self, result: object, timeout: float | None = None, **options: object) -> None:
        """Read the result, unless a read was sent with its subscription. `timeout`: seconds."""
        task_id = getattr(result, "id", None)  # a ResultSet has none
        if not self._is_asked(task_id):
            super().on_wait_for_pending(result, timeout=timeout, **options)
        while timeout is not None and timeout < 1 and self._is_asked(task_id):
            self.drain_events(timeout=1)

    def _is_asked(self, task_id: str | None) -> bool:
        key = self._get_key_for_task(task_id) if task_id else b""
        with self._locked():
            return self._pubsub is not None and any(key in keys for keys in self._pubsub.reads)

    def _drain_one(self, pubsub: Subscriber, timeout: float | None) -> bool:
        """Read up to the first result that has arrived; then read those whose subscriptions have been confirmed."""
        drained, confirmed = False, []
        with self.reconnect_on_error():
            while pubsub.subscribed and pubsub.connection is not None and pubsub.connection.can_read(timeout=0):
                drained = True
                try:
                    answer = pubsub.parse_response(block=timeout is None, timeout=timeout)
                except exceptions.ResponseError:  # takes the place of an answer: later ones could not be matched to their reads
                    pubsub.connection.disconnect()
                    raise
                if type(answer) is list and pubsub.reads:
                    if self._accept(pubsub.answered(), answer):
                        break
                    continue
                message = pubsub.handle_message(answer)
                kind, key = (message["type"], pubsub.encoder.encode(message["channel"])) if message else ("", b"")
                if kind == "message" and message and self._accept([key], [message["data"]]):
                    break
                if kind == "subscribe" and key in pubsub.unread:
                    pubsub.unread.discard(key)
                    confirmed.append(key)
            pubsub.check_answers()
            self._read_now(confirmed)
        return drained

    def _read_now(self, keys: Collection[bytes]) -> None:
        awaited = self.subscribed_to.intersection(keys) - self._pending_unsubscribe
        self._accept(list(awaited), self.backend.client.mget(list(awaited)) if awaited else [])

    def _accept(self, keys: Iterable[bytes], values: Iterable[bytes | None]) -> bool:
        """Handle the states of tasks that somebody waits for. Returns whether there was one."""
        was = False
        for key, value in zip(keys, values, strict=True):
            if value and key in self.subscribed_to and key not in self._pending_unsubscribe:
                self.on_state_change(self._decode_result(value), None)
                was = True
        return was
