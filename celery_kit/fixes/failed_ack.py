"""An acknowledgement that Redis does not take leaves a worker that is alive, connected, and consumes nothing.

kombu 5.7.0 frees a message's place in the prefetch window after Redis has taken its acknowledgement. Where that raises, as it
does with a server that froze for longer than socket_timeout, Celery logs "Couldn't ack" and goes on, and the place stays taken
for as long as the connection lives: with a prefetch count of 1, as on solo, nothing is ever consumed again. Source:
kombu/transport/redis.py, QoS.ack; kombu/message.py, ack_log_error.

Closed by freeing the place all the same, and by sending the acknowledgement again with the next one that goes through; where
none does, the message runs again after the visibility timeout. Can go when
tests/faults/test_faults.py::test_fault[redis-solo-broker_frozen] passes without it.
"""

from typing import Any

from kombu.transport import virtual


class FreedPlace:
    """For a QoS of kombu's Redis transport, before its class."""

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
