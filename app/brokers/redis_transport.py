"""kombu's Redis transport, with AMQP's meaning of a task's priority: 0 to 9, higher is more urgent, none is 0.

kombu's own has it the other way round, 0 first. A priority is a list of its own there; the worker takes from the first list
that holds anything, so the order of the steps is the order of urgency. Messages without a priority stay in the list that has
the queue's plain name. Source: kombu/transport/redis.py, Channel._brpop_start, _q_for_pri.
"""

from typing import Any

from kombu.transport import redis

from app.brokers import redis_dead
from app.fixes.failed_ack import FreedPlace

kombus: Any = redis.Channel


class QoS(FreedPlace, redis_dead.QoS):
    """Which messages are out."""


class Channel(redis_dead.Channel):
    QoS = QoS
    _kept: Any = None
    priority_steps = list(range(9, -1, -1))  # noqa: RUF012  # as in kombu

    def priority(self, n: int) -> int:
        """The step that a message of priority `n` belongs to; kombu expects ascending steps here."""
        return max(step for step in self.priority_steps if step <= n)

    def _create_client(self: Any, asynchronous: bool = False) -> Any:
        """The client, made once for a pool of connections: kombu makes one for every message, a third of a `delay()`."""
        if asynchronous:
            return kombus._create_client(self, asynchronous)
        if self._kept is None or self._kept.connection_pool is not self.pool:
            self._kept = kombus._create_client(self)
        return self._kept


class Transport(redis.Transport):
    Channel = Channel
