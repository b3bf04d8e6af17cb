"""Faults of remote control commands."""

from functools import wraps

from celery.backends.base import Backend
from celery.worker import control
from celery.worker import state as workers

from celery_kit.base.gate import is_limit
from celery_kit.base.messages import DEAD
from celery_kit.base.types import Callback, Control

#: How many states of revoked tasks are stored without a pause, and the pause in seconds.
AT_ONCE, PAUSE = 100, 0.05
#: Characters of a queue's name, and of what an answer repeats.
MOST_NAME = 255


def refused(why: str) -> dict[str, str]:
    """The answer of a command that was not carried out, as Celery's clients show it."""
    return {"error": why}


def add_consumer(**_: object) -> None:
    """Have `add_consumer NAME` declare the same type of queue as a producer or `-Q` does.

    Celery declares missing queues as task_create_missing_queue_type and …_exchange_type say, but this command declares a
    classic queue on a direct exchange: 406 PRECONDITION_FAILED if the queue exists with another type. Here the worker adds the
    queue to its own before Celery's command looks for it, if the command gives only its name. A name that is none, or one of
    the dead letters', is refused: consuming it would end the worker.
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
        if not isinstance(queue, str) or not 0 < len(queue) <= MOST_NAME or queue.startswith(DEAD):
            return refused(f"not a queue of tasks: {str(queue)[:MOST_NAME]!r}")
        if exchange is None and exchange_type in (None, "direct"):  # clients send "direct" if no type was given
            state.app.amqp.queues[queue]
        return celerys(state, queue, exchange, exchange_type, **options)


def revoke(**_: object) -> None:
    """Have `revoke` of many ids flag all of them at once, and store their states bit by bit.

    Celery 5.7.0 asks the result backend for the state of each, and stores REVOKED, in the worker's loop: 60,000 ids hold up its
    tasks for 13 s. Source: celery/worker/control.py, _revoke.
    """
    celerys: Callback = vars(control)["revoke"]

    @control.control_command(variadic="task_id", signature="[id1 [id2 [... [idN]]]]")
    def revoke(
        state: Control, task_id: object, terminate: bool = False, signal: str | None = None, **options: object
    ) -> object:
        """Revoke task by task id (or list of ids)."""
        given: list[object] = list(task_id) if isinstance(task_id, list | tuple | set) else [task_id]
        ids = [one for one in given if isinstance(one, str)]
        workers.revoked.update(ids)
        ids.sort(key=lambda one: one not in workers.requests)  # those that this worker holds come first
        held = sum(one in workers.requests for one in ids)
        first = max(held, AT_ONCE)
        answer = celerys(state, ids[:first], terminate, signal, **options)
        _later(state, celerys, ids[first:])
        return refused("some ids are no texts") if len(ids) < len(given) else answer


def _later(state: Control, celerys: Callback, ids: list[str]) -> None:
    """Store the states of revoked tasks that this worker does not hold, a few at a time."""
    if ids:
        celerys(state, ids[:AT_ONCE])
        state.consumer.timer.call_after(PAUSE, _later, (state, celerys, ids[AT_ONCE:]))


def early_revoked(**_: object) -> None:
    """Have `revoke` leave the state of a task that runs to whoever runs it.

    Celery 5.6 stores REVOKED for it at once, whether the task is ended by that or goes on. Celery 5.7 does as this does.
    """
    celerys = Backend.mark_as_revoked

    @wraps(celerys)
    def mark_as_revoked(
        self: Backend, task_id: str, reason: str = "", request: object = None, *rest: object, **options: object
    ) -> None:
        if request is None and any(one.id == task_id for one in workers.active_requests):  # only the command knows no request
            return
        celerys(self, task_id, reason, request, *rest, **options)  # type: ignore[arg-type]

    Backend.mark_as_revoked = mark_as_revoked  # type: ignore[method-assign]


def time_limit(**_: object) -> None:
    """Have `celery control time_limit TASK …` change the limits of the tasks that come from then on.

    Celery 5.7.0 answers ok and changes nothing: it reads a task's time limits once, when it makes the worker's request class
    for it, and the command only sets the task's attributes. Here the worker makes that class again. A limit that is no number
    is refused: it would end the worker at the next task.
    Source: celery/worker/request.py, create_request_cls; celery/worker/control.py, time_limit.
    """
    celerys: Callback = vars(control)["time_limit"]

    @control.control_command(
        args=[("task_name", str), ("soft", float), ("hard", float)],
        signature="<task_name> <soft_secs> [hard_secs]",
    )
    def time_limit(state: Control, task_name: str = "", **limits: object) -> object:
        """Tell worker(s) to modify the time limit for task by type."""
        for name in ("soft", "hard"):
            if not is_limit(limits.get(name)):
                return refused(f"{name} is no number of seconds: {str(limits[name])[:MOST_NAME]!r}")
        answer = celerys(state, task_name, **limits)
        if task := state.app.tasks.get(task_name):
            state.consumer.strategies[task_name] = task.start_strategy(state.app, state.consumer)
        return answer
