"""A retry with a delay leaves its queue for the default one, where the broker itself delays tasks.

Celery 5.7.0's Task.retry names the exchange and routing key that the message came by, and send_task looks at the queue alone,
which then is the default one; after a delayed delivery the key carries 28 digits of it, too. Workers of other queues never see
their retries. Source: celery/app/task.py, signature_from_request; celery/app/base.py, send_task.

Closed by naming the queue. Can go when tests/integration/test_retry.py::test_retry_stays_in_its_queue passes without it.
"""

import re
from typing import Any

#: What kombu puts before the routing key: the delay in seconds, in binary.
DELAY = re.compile(r"^(?:[01]\.){28}")
DELIVERY = "celery_delayed_delivery"


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Give send_task's options back; with the queue's name in place of an exchange and a routing key that mean a queue."""
    exchange, routing_key = options.get("exchange"), options.get("routing_key")
    if options.get("queue") or not isinstance(exchange, str) or not isinstance(routing_key, str):
        return options
    queue = DELAY.sub("", routing_key)
    if exchange not in (queue, DELIVERY):
        return options
    return {name: value for name, value in options.items() if name not in ("exchange", "routing_key")} | {"queue": queue}
