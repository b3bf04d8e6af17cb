"""Waits for results on Redis: a producer subscribes, and reads what is there already, in one write.

Celery subscribes on one connection and reads on another, and the server serves its connections in no certain order: if a task
ends after the read and before the subscription, `get()` waits until its timeout. With Celery that can happen if a result is
read by its id; with the kit it could happen to every wait, for it subscribes no sooner (`celery_kit/results/redis/backend.py`).
One connection is served in order, and since RESP3 a subscriber may read keys. So a `get()` takes one round trip before its
wait, and an unsubscription is sent with the next one. If many wait, or the URL has `protocol=2`, the read follows the confirmed
subscription. Source: celery/backends/redis.py 5.7.0, ResultConsumer; redis 8.1.0, client.py, PubSub. Can go when
tests/unit/results/redis/test_waiting.py says so.
"""

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from time import monotonic
from typing import Any

from celery.backends import redis
from redis import client, exceptions
from redis.utils import check_protocol_version

from celery_kit.fixes import patched

CelerysConsumer: Any = patched(vars(redis)["ResultConsumer"], "abandoned_waits")  # unknown to celery-types
PubSub: Any = client.PubSub  # half typed

#: The largest number of unanswered reads: a server disconnects a subscriber whose answers pile up.
LOOKS = 8
#: The largest number of pending unsubscriptions.
LEFT = 100


class Ear(PubSub):  # type: ignore[misc]
    """A connection that is notified of results, and reads earlier ones."""

    def __init__(self, pool: Any, dispatcher: Any) -> None:
        #: The keys of each unanswered read; and those to be read after their subscription is confirmed.
        self.looks: deque[Sequence[bytes]] = deque()
        self.unseen: set[bytes] = set()
        self._left: list[bytes] = []
        self._asked = 0.0
        #: The protocol lets a subscriber read. A notification is a tuple then, and an answer a list.
        self._can_look = bool(check_protocol_version(pool.get_protocol(), 3))
        super().__init__(pool, push_handler_func=tuple if self._can_look else None, event_dispatcher=dispatcher)

    def reset(self) -> None:
        self._forget()
        super().reset()

    def on_connect(self, connection: Any) -> None:
        for key in self._left:
            self.channels.pop(key, None)
        self._forget()
        super().on_connect(connection)

    def _forget(self) -> None:
        self.looks.clear()
        self.unseen.clear()
        self._left.clear()

    def execute_command(self, name: str, *keys: bytes) -> None:
        """Send what `subscribe` and `unsubscribe` ask for."""
        if name == "UNSUBSCRIBE" and len(self._left) + len(keys) < LEFT:
            self._left += keys
            return
        commands: list[Any] = []
        if self.connection is None:
            super().execute_command(name, *keys)  # connects
        else:
            commands += [("UNSUBSCRIBE", *self._left)] if self._left else []
            commands.append((name, *keys))
        looks = name == "SUBSCRIBE" and self._can_look and len(self.looks) + len(keys) <= LOOKS
        if looks:
            commands.append(("MGET", *keys))
        if commands:
            connection: Any = self.connection
            connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        self._left.clear()
        if looks:  # now only: to send it may have taken a new connection, which has looks of its own
            self._asked = self._asked if self.looks else monotonic()
            self.looks.append(keys)
        elif name == "SUBSCRIBE":
            self.unseen.update(keys)

    def seen(self) -> Sequence[bytes]:
        """The keys of the read that has just been answered."""
        self._asked = monotonic()
        return self.looks.popleft()

    def check_answers(self) -> None:
        """Raises ConnectionError if the oldest unanswered read is older than the socket's timeout."""
        patience = self.connection_pool.connection_kwargs.get("socket_timeout")
        if self.looks and patience and monotonic() > self._asked + patience:
            raise exceptions.ConnectionError(f"no answer from the results server within {patience:g} s")


class ResultConsumer(CelerysConsumer):  # type: ignore[misc]
    """See the module."""

    _pubsub: Ear | None = None

    def _ear(self) -> Ear:
        server = self.backend.client
        return Ear(server.connection_pool, getattr(server, "_event_dispatcher", None))

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for a notification. The drainer of greenlets calls it before there is a subscription, which has to wake it:
        Celery's sleeps for a second then.
        """
        if self._pubsub is None:
            with self._locked():
                self._pubsub = self._pubsub or self._ear()
        super().drain_events(timeout)

    def start(self, initial_task_id: str, **options: Any) -> None:
        with self._locked():
            self._pubsub = self._ear()
            self._consume_from(initial_task_id)

    def cancel_for(self, task_id: str) -> None:
        """Called for every result that is deleted, whether it was subscribed to or not."""
        if self.subscribed_to:
            super().cancel_for(task_id)

    def _reconnect_pubsub(self) -> None:
        with self._locked():
            self._pubsub = None
            self.backend.client.connection_pool.reset()
            self._look(self.subscribed_to)  # as Celery does: an unavailable server is noticed here
            self.subscribed_to -= self._pending_unsubscribe
            self._pending_unsubscribe.clear()
            self._pubsub = self._ear()
            if self.subscribed_to:
                self._pubsub.subscribe(*self.subscribed_to)

    def on_wait_for_pending(self, result: Any, timeout: float | None = None, **options: Any) -> None:
        """Read the result, unless that was sent with its subscription."""
        task_id = getattr(result, "id", None)  # a ResultSet has none
        if not self._is_asked(task_id):
            super().on_wait_for_pending(result, timeout=timeout, **options)
        while timeout is not None and timeout < 1 and self._is_asked(task_id):
            self.drain_events(timeout=1)

    def _is_asked(self, task_id: str | None) -> bool:
        key = self._get_key_for_task(task_id) if task_id else b""
        with self._locked():
            return self._pubsub is not None and any(key in keys for keys in self._pubsub.looks)

    def _drain_one(self, pubsub: Any, timeout: float | None) -> bool:
        """Read up to the first result that has arrived; then read those whose subscriptions have been confirmed."""
        drained, confirmed = False, []
        with self.reconnect_on_error():
            while pubsub.subscribed and pubsub.connection is not None and pubsub.connection.can_read(timeout=0):
                drained = True
                try:
                    said = pubsub.parse_response(block=timeout is None, timeout=timeout)
                except exceptions.ResponseError:  # not permitted: the answers cannot be matched any more
                    pubsub.connection.disconnect()
                    raise
                if type(said) is list and pubsub.looks:
                    if self._heard(pubsub.seen(), said):
                        break
                    continue
                message = pubsub.handle_message(said)
                kind, key = (message["type"], pubsub.encoder.encode(message["channel"])) if message else ("", b"")
                if kind == "message" and self._heard([key], [message["data"]]):
                    break
                if kind == "subscribe" and key in pubsub.unseen:
                    pubsub.unseen.discard(key)
                    confirmed.append(key)
            pubsub.check_answers()
            self._look(confirmed)
        return drained

    def _look(self, keys: Collection[bytes]) -> None:
        awaited = self.subscribed_to.intersection(keys) - self._pending_unsubscribe
        self._heard(list(awaited), self.backend.client.mget(list(awaited)) if awaited else [])

    def _heard(self, keys: Iterable[bytes], values: Iterable[Any]) -> bool:
        """Take the states of tasks that somebody waits for. Returns whether there was one."""
        was = False
        for key, value in zip(keys, values, strict=True):
            if value and key in self.subscribed_to and key not in self._pending_unsubscribe:
                self.on_state_change(self._decode_result(value), None)
                was = True
        return was
