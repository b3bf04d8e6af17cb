"""Faults of remote control commands."""

from importlib import import_module
from typing import Any


def add_consumer(**_: Any) -> None:
    """Have `add_consumer NAME` declare the same type of queue as a producer or `-Q` does.

    Celery makes missing queues as task_create_missing_queue_type and …_exchange_type say, but this command declares a classic
    queue on a direct exchange: 406 PRECONDITION_FAILED where the other type is there already. Here the worker adds the queue to
    its own before Celery's command looks for it, where only its name was given.
    """
    control: Any = import_module("celery.worker.control")  # only in workers
    celerys = control.add_consumer

    @control.control_command(
        args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
        signature="<queue> [exchange [type [routing_key]]]",
    )
    def add_consumer(state: Any, queue: str, exchange: Any = None, exchange_type: Any = None, **options: Any) -> Any:
        """Tell worker(s) to consume from task queue by name."""
        if exchange is None and exchange_type in (None, "direct"):  # "direct" is what clients send where nothing is said
            state.app.amqp.queues[queue]
        return celerys(state, queue, exchange, exchange_type, **options)
