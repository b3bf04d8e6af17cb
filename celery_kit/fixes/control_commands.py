"""Faults of remote control commands."""

from functools import wraps
from importlib import import_module
from typing import Any

from celery.backends.base import Backend
from celery.worker import state


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


def early_revoked(**_: object) -> None:
    """Have `revoke` leave the state of a task that runs to whoever runs it.

    Celery 5.6 stores REVOKED for it at once, whether the task is ended by that or goes on. Celery 5.7 does as this does.
    """
    celerys = Backend.mark_as_revoked

    @wraps(celerys)
    def mark_as_revoked(
        self: Backend, task_id: str, reason: str = "", request: object = None, *rest: object, **options: object
    ) -> None:
        if request is None and any(one.id == task_id for one in state.active_requests):  # only the command knows no request
            return
        celerys(self, task_id, reason, request, *rest, **options)  # type: ignore[arg-type]

    Backend.mark_as_revoked = mark_as_revoked  # type: ignore[method-assign]
