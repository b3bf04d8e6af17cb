"""A task for a Broadcast queue reaches nobody, and nothing says so, on Redis.

A producer declares the queues that it sends to, but not a Broadcast: that is a worker's own. What is not declared the Redis
transport of kombu 5.7.0 does not know. It takes the exchange for a direct one, and no queue is bound to it by the message's
key.
Source: celery/app/amqp.py 5.7.0, send_task_message; kombu/transport/virtual/base.py, Channel.typeof.

Closed by having the producer declare the exchange, where its app has such a queue; and by having who binds a queue to a fanout
exchange on Redis write that down on the server, where a producer looks that knows nothing of the exchange. Can go when
tests/compat/test_broadcast.py passes for plain Celery.
"""

from collections.abc import Iterable
from typing import Any

from kombu import Exchange, Queue
from kombu.utils.encoding import bytes_to_str

#: A set: the exchanges that queues are bound to, and that each of these gets a copy from.
FANOUTS = "_celery-kit.fanout"


def exchanges(queues: Iterable[Any], queue: Any, exchange: Any) -> list[Exchange]:
    """What to declare for a message to this queue, or this exchange, that declares nothing itself. Both may be names."""
    found: Any = exchange
    if not isinstance(exchange, Exchange):
        to = (getattr(one, "exchange", None) for one in ([queue] if isinstance(queue, Queue) else queues))
        found = next((one for one in to if one and exchange in (None, "", one.name)), None)
    return [found] if found is not None and found.type == "fanout" else []


class Fanouts:
    """For the channel of kombu's Redis transport, before its class."""

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
