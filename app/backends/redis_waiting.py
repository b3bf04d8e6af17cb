"""How a producer waits for results on Redis: it hears of them, and looks once more when it is sure to hear.

The server reads its connections in no certain order. `get()` subscribes by one and looks by another, and a task that ends after
the look and before the server knows of the subscription is never heard of: `get()` waits until its timeout. Celery is open to
it where a result is read by its id; the kit would be wherever it waits, for it subscribes no sooner (`app/backends/redis.py`).
Source: celery/backends/redis.py 5.7.0, ResultConsumer. Can go when tests/unit/test_redis_waiting.py says so.
"""

from typing import Any

from celery.backends import redis

CelerysConsumer: Any = vars(redis)["ResultConsumer"]  # unknown to celery-types


class ResultConsumer(CelerysConsumer):  # type: ignore[misc]
    """See the module."""

    def start(self, initial_task_id: str, **options: Any) -> None:
        with self._locked():
            super().start(initial_task_id, **options)
            self._pubsub.ignore_subscribe_messages = False

    def cancel_for(self, task_id: str) -> None:
        """Of what is not subscribed to there is nothing to say: the end of each result that nobody waited for comes here."""
        if self.subscribed_to:
            super().cancel_for(task_id)

    def _reconnect_pubsub(self) -> None:
        with self._locked():
            super()._reconnect_pubsub()
            self._pubsub.ignore_subscribe_messages = False

    def _drain_one(self, pubsub: Any, timeout: float | None) -> bool:
        """Read what is there, up to the first result; then look at those whose subscriptions the server has confirmed."""
        drained, confirmed = False, []
        with self.reconnect_on_error():
            while pubsub.subscribed and pubsub.connection is not None and pubsub.connection.can_read(timeout=0):
                drained = True
                message = pubsub.get_message(timeout=timeout)
                if message and message["type"] == "message":
                    self.on_state_change(self._decode_result(message["data"]), message)
                elif message and message["type"] == "subscribe":
                    confirmed.append(message["channel"])
                    continue
                elif message:  # an unsubscription
                    continue
                break
            awaited = [key for key in confirmed if key in self.subscribed_to - self._pending_unsubscribe]
            for meta in self.backend.client.mget(awaited) if awaited else ():
                if meta:
                    self.on_state_change(self._decode_result(meta), None)
        return drained
