"""Task time limits on every pool. Celery enforces both only on prefork, and the hard one also on gevent.

At its soft limit a task gets SoftTimeLimitExceeded and may clean up. At its hard limit it is terminated and fails with
TimeLimitExceeded, by the same steps of Celery as on prefork. An exception cannot reach work that never yields on green pools,
nor a call in a thread that does not return to Python: such work goes on until it can.
Source: celery/concurrency/gevent.py 5.7.0, apply_timeout; celery/worker/request.py, on_timeout.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from celery.exceptions import SoftTimeLimitExceeded

from celery_kit.base.types import Callback
from celery_kit.pools.in_process import InProcess, PoolOptions


class Late(BaseException):
    """Raised in a task at its hard time limit. A task should not catch it."""


class Timeout(Protocol):
    """A context that raises an exception after a time. `pending`: it has not raised it yet."""

    @property
    def pending(self) -> bool: ...

    def __enter__(self) -> "Timeout": ...

    def __exit__(self, *exception: Any) -> None: ...


#: In place of a return value: the task was terminated.
ENDED = object()
NONE = nullcontext()


class TimeLimits(InProcess):
    """A pool that enforces the time limits of tasks.

    `timeout_in(seconds, exception)` makes a context in which `exception` is raised after so many seconds: the green libraries'
    own Timeout, or :class:`celery_kit.pools.interrupt.Interrupt` where tasks run in threads.
    """

    timeout_in: Callable[[float, BaseException], Timeout]

    def prepared(self, target: Callback, options: PoolOptions) -> Callback:
        """As :meth:`InProcess.prepared`, within a soft and a hard time limit.

        `soft_timeout`, `timeout`: the limits in seconds; those of the worker if they are not given. `timeout_callback(soft,
        seconds)` is called when a task has reached one of them.
        """
        soft: float | None = options.pop("soft_timeout", None) or self.options.get("soft_timeout")
        hard: float | None = options.pop("timeout", None) or self.options.get("timeout")
        timeout_callback = options.pop("timeout_callback", None)
        if not (soft or hard):
            return super().prepared(target, options)
        callback = options.get("callback")
        timeout_in = self.timeout_in

        def run(*args: object, **kwargs: object) -> object:
            outcome: object = ENDED
            limit: AbstractContextManager[object] = timeout_in(hard, Late()) if hard else NONE
            try:
                with limit:
                    if not soft:
                        outcome = target(*args, **kwargs)
                    else:
                        with timeout_in(soft, SoftTimeLimitExceeded()) as warning:
                            outcome = target(*args, **kwargs)
                            if not warning.pending and timeout_callback:
                                timeout_callback(True, soft)
            except (Late, SoftTimeLimitExceeded):
                return outcome  # set already if the exception came just after the task's end
            return outcome

        def done(outcome: object) -> None:
            if outcome is not ENDED:
                if callback:
                    callback(outcome)
            elif timeout_callback:
                timeout_callback(False, hard or soft)

        options.update(callback=done, timeout=0)  # 0: not gevent's own as well
        return super().prepared(run, options)
