"""Task time limits on every pool: Celery itself enforces them on prefork alone, and the hard one on gevent.

A task gets SoftTimeLimitExceeded at its soft limit and may clean up; at its hard limit it is ended, and fails with
TimeLimitExceeded, by the same steps of Celery as on prefork. What no exception can reach goes on until one can: on green pools
work that never yields, in a thread a call that does not return to Python.
Source: celery/concurrency/gevent.py 5.7.0, apply_timeout; celery/worker/request.py, on_timeout.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_kit.pools.in_process import InProcess


class Late(BaseException):
    """Ends a task at its hard time limit; nothing that a task should catch."""


#: In place of a return value: the task was ended.
ENDED = object()
NONE: Any = nullcontext()


class TimeLimits(InProcess):
    """A pool that ends tasks at their time limits.

    `timeout_in(seconds, exception)` gives a context in which `exception` is raised after so many seconds: the green libraries'
    own Timeout, or :class:`celery_kit.pools.interrupt.Interrupt` where tasks run in threads.
    """

    timeout_in: Any

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        *,
        callback: Any = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        timeout_callback: Any = None,
        **options: Any,
    ) -> Any:
        """The same within `soft_timeout` and `timeout`, in seconds; where they are not given, the worker's own.

        `timeout_callback(soft, seconds)` is called when a task has met one of them.
        """
        soft = soft_timeout or self.options.get("soft_timeout")
        hard = timeout or self.options.get("timeout")
        if not (soft or hard):
            return super().apply_async(target, args, kwargs, callback=callback, **options)
        timeout_in = self.timeout_in

        def run(*args: Any, **kwargs: Any) -> Any:
            outcome: Any = ENDED
            try:
                with timeout_in(hard, Late()) if hard else NONE:
                    if not soft:
                        outcome = target(*args, **kwargs)
                    else:
                        with timeout_in(soft, SoftTimeLimitExceeded()) as warning:
                            outcome = target(*args, **kwargs)
                            if not warning.pending and timeout_callback:
                                timeout_callback(True, soft)
            except (Late, SoftTimeLimitExceeded):
                return outcome  # one that comes when the task has just ended finds its outcome here
            return outcome

        def done(outcome: Any) -> Any:
            if outcome is not ENDED:
                return callback(outcome)
            return timeout_callback(False, hard or soft) if timeout_callback else None

        return super().apply_async(run, args, kwargs, callback=done, timeout=0, **options)  # 0: not gevent's own as well
