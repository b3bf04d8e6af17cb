"""A task whose message reaches a worker before its ETA waits in the broker again.

Celery's and the kit's producers send such a task to queues that delay it. Others send it to its queue at once, and Celery's
worker holds it until its ETA. Meanwhile Celery raises the prefetch count, which the broker does not have for quorum queues: a
few of these messages would keep a worker from all other tasks.
Source: celery 5.7.0, worker/strategy.py, app/base.py, send_task; kombu 5.7.0, transport/native_delayed_delivery.py.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from time import time
from typing import TYPE_CHECKING

from kombu.transport.native_delayed_delivery import MAX_LEVEL, calculate_routing_key, level_name

from celery_kit.brokers.rabbitmq.failed import body_of, properties_of
from celery_kit.fixes.delayed_messages import Delayed

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.types import Message

#: Seconds before its ETA from which a worker keeps a message. What waits in the broker comes back up to a second early.
NEAR = 2.0
#: The longest time that the queues can delay, in seconds: eight years. What is due later waits again then.
LONGEST = 2 ** (MAX_LEVEL + 1) - 1
#: What the broker adds to the headers of a message that it delivers.
ADDED = ("x-delivery-count", "x-death", "x-first-death-", "x-last-death-", "x-acquired-count")


def park(app: Celery, message: Message, name: str) -> bool:
    """Have a message from the queue `name` wait until its ETA, and acknowledge it. Returns False if it is to be held here.

    Raises OperationalError, and the connection's errors; then it is still unacknowledged.
    """
    queue = app.amqp.queues.get(name)
    left = _left(message.headers.get("eta"))
    if left < NEAR or not queue or not queue.exchange or queue.exchange.type == "direct" or not queue.routing_key:
        return False
    if (queue.queue_arguments or {}).get("x-queue-type") != "quorum":
        return False
    _reaching(app).reach(queue)  # the worker may not have declared the queues that delay yet
    headers = {key: value for key, value in message.headers.items() if not key.startswith(ADDED)}
    if not message.errors:
        headers.pop("compression", None)  # kombu has decompressed the body
    with app.producer_or_acquire() as producer:
        producer.publish(
            body_of(message),
            exchange=level_name(MAX_LEVEL),
            routing_key=calculate_routing_key(min(int(left), LONGEST), queue.routing_key),
            headers=headers,
            mandatory=True,  # raises an error if the queues that delay are not there
            retry=True,
            retry_policy={"max_retries": 3},
            content_type=message.content_type or "application/data",
            content_encoding=message.content_encoding,
            **properties_of(message),
        )
    message.ack()
    return True


@cache
def _reaching(app: Celery) -> Delayed:
    return Delayed(app)


def _left(eta: object) -> float:
    """The seconds until an ETA; 0 for one that has no time zone, or is none."""
    try:
        at = datetime.fromisoformat(eta) if isinstance(eta, str) else None
        return at.timestamp() - time() if at and at.tzinfo else 0.0
    except (ValueError, OverflowError):  # Celery's handler reports this
        return 0.0
