"""`celery control time_limit TASK …` is answered with ok, and changes nothing.

Celery 5.7.0 reads a task's time limits once, when it makes the worker's request class for it, and the command only sets the
task's attributes. Source: celery/worker/request.py, create_request_cls; celery/worker/control.py, time_limit.

Closed by having the worker make that class anew. Can go when
tests/integration/test_control.py::test_time_limit_by_control passes without it.
"""

from importlib import import_module
from typing import Any

from celery_kit.base.signals import celeryd_init


def connect() -> None:
    """Have every worker take this command in place of Celery's own."""
    celeryd_init.connect(_register, weak=False)


def _register(**_: Any) -> None:
    control: Any = import_module("celery.worker.control")  # only in workers
    celerys = control.time_limit

    @control.control_command(
        args=[("task_name", str), ("soft", float), ("hard", float)],
        signature="<task_name> <soft_secs> [hard_secs]",
    )
    def time_limit(state: Any, task_name: str | None = None, **limits: Any) -> Any:
        """Tell worker(s) to modify the time limit for task by type."""
        answer = celerys(state, task_name, **limits)
        if task := state.app.tasks.get(task_name):
            state.consumer.strategies[task_name] = task.start_strategy(state.app, state.consumer)
        return answer
