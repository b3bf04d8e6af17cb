"""Task time limits on every pool: Celery itself enforces them on prefork alone, and the hard one on gevent.

A row of the pools' table names what raises an exception in a task that is late (`timeout`): the green libraries' own Timeout,
or `celery_kit/pools/interrupt.py` where tasks run in threads. A task gets SoftTimeLimitExceeded at its soft limit and may clean
up; at its hard one it is ended, and fails with TimeLimitExceeded, by the same steps of Celery's as on prefork. What no
exception can reach goes on until it can: on green pools work that never yields, in a thread a call that does not return to
Python. Source: celery/concurrency/gevent.py 5.7.0, apply_timeout; celery/worker/request.py, on_timeout.
"""

from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from typing import Any

from celery import bootsteps
from celery.exceptions import SoftTimeLimitExceeded

from celery_kit.pools.table import row


class Late(BaseException):
    """Ends a task at its hard time limit; nothing that a task should catch."""


#: In place of a return value: the task was ended.
ENDED = object()
NONE: Any = nullcontext()


def limiting(
    apply_async: Callable[..., Any], timeout_in: Callable[..., Any], usual: tuple[float | None, float | None]
) -> Callable[..., Any]:
    """A pool's apply_async, which ends tasks that are late. `usual`: the worker's own soft and hard limit, in seconds."""

    def apply(
        target: Callable[..., Any],
        args: Any = (),
        callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        timeout_callback: Any = None,
        **options: Any,
    ) -> Any:
        soft, hard = soft_timeout or usual[0], timeout or usual[1]
        if not (soft or hard):
            return apply_async(target, args, callback=callback, **options)

        def run(*args: Any) -> Any:
            outcome: Any = ENDED
            try:
                with timeout_in(hard, Late()) if hard else NONE:
                    if not soft:
                        outcome = target(*args)
                    else:
                        with timeout_in(soft, SoftTimeLimitExceeded()) as warning:
                            outcome = target(*args)
                            if not warning.pending and timeout_callback:
                                timeout_callback(True, soft)
            except (Late, SoftTimeLimitExceeded):
                return outcome  # one that comes when the task has just ended finds its outcome here
            return outcome

        def done(outcome: Any) -> Any:
            if outcome is not ENDED:
                return callback(outcome)
            return timeout_callback(False, hard or soft) if timeout_callback else None

        return apply_async(run, args, callback=done, timeout=0, **options)  # 0: gevent's own does not count besides

    return apply


class Step(bootsteps.StartStopStep):
    """Has a worker's pool keep to the limits, where its row names how."""

    label = "Time limits"
    # Its wrapper is the outer one: a limit that ends a task is none of its errors.
    requires = ("celery.worker.consumer.connection:Connection", "celery_kit.fixes.raised_in_process:Step")

    def create(self, parent: Any) -> None:
        pool = row(parent.pool)
        if pool and pool.timeout:
            module, _, name = pool.timeout.partition(":")
            usual = parent.pool.options.get("soft_timeout"), parent.pool.options.get("timeout")
            parent.pool.apply_async = limiting(parent.pool.apply_async, getattr(import_module(module), name), usual)
