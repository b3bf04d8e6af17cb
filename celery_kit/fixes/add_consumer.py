"""`celery control add_consumer NAME` declares another kind of queue than a producer does, and RabbitMQ refuses one of them.

Celery 5.7.0 makes the queues that a producer or `-Q` names as task_create_missing_queue_type and …_exchange_type say, but
add_consumer a classic queue on a direct exchange: 406 PRECONDITION_FAILED where the other kind is there already. Source:
celery/worker/consumer/consumer.py, add_task_queue; celery/app/amqp.py, Queues.new_missing.

Closed by having the worker know the queue, where only its name was given, before Celery's own command asks for it. Can go when
tests/integration/test_control.py::test_add_consumer passes without it.
"""

from importlib import import_module
from typing import Any

from celery_kit.base.signals import celeryd_init


def connect() -> None:
    """Have every worker take this command in place of Celery's own."""
    celeryd_init.connect(_register, weak=False)


def _register(**_: Any) -> None:
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
