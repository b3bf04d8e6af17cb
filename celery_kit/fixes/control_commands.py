"""Faults of remote control commands."""

from functools import wraps

from celery.backends.base import Backend
from celery.worker import control, state

from celery_kit.base.types import Callback, Control


def add_consumer(**_: object) -> None:
    """Have `add_consumer NAME` declare the same type of queue as a producer or `-Q` does.

    Celery declares missing queues as task_create_missing_queue_type and …_exchange_type say, but this command declares a
    classic queue on a direct exchange: 406 PRECONDITION_FAILED if the queue exists with another type. Here the worker adds the
    queue to its own before Celery's command looks for it, if the command gives only its name.
    """
    celerys: Callback = vars(control)["add_consumer"]  # the stubs have no commands

    @control.control_command(
        args=[("queue", str), ("exchange", str), ("exchange_type", str), ("routing_key", str)],
        signature="<queue> [exchange [type [routing_key]]]",
    )
    def add_consumer(
        state: Control, queue: str, exchange: str | None = None, exchange_type: str | None = None, **options: object
    ) -> object:
        """Tell worker(s) to consume from task queue by name."""
        if exchange is None and exchange_type in (None, "direct"):  # clients send "direct" if no type was given
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


def time_limit(**_: object) -> None:
    """Have `celery control time_limit TASK …` change the limits of the tasks that come from then on.

    Celery 5.7.0 answers ok and changes nothing: it reads a task's time limits once, when it makes the worker's request class
    for it, and the command only sets the task's attributes. Here the worker makes that class again.
    Source: celery/worker/request.py, create_request_cls; celery/worker/control.py, time_limit.
    """
    celerys: Callback = vars(control)["time_limit"]

    @control.control_command(
        args=[("task_name", str), ("soft", float), ("hard", float)],
        signature="<task_name> <soft_secs> [hard_secs]",
    )
    def time_limit(state: Control, task_name: str = "", **limits: object) -> object:
        """Tell worker(s) to modify the time limit for task by type."""
        answer = celerys(state, task_name, **limits)
        if task := state.app.tasks.get(task_name):
            state.consumer.strategies[task_name] = task.start_strategy(state.app, state.consumer)
        return answer
