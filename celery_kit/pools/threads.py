"""The pool of threads, whose tasks can be ended: at a time limit, and by revoke(terminate=True).

Celery answers that command with an error here, and the task goes on to its end. The exception that ends a task is raised while
the task's own code runs, and at no other time: not while Celery stores a result, writes a log line or begins the next task.
The task's thread reports the outcome, so that there is one: that of a task which had returned, or REVOKED, once it has ended.
A call that waits is not cut short, and a task that catches BaseException goes on. A revoked task that waits for a thread does
not begin; Celery checks only before it is given to the pool.
Source: celery/worker/request.py 5.7.0, Request.terminate and revoked; https://github.com/celery/celery/issues/8147 and 10490.
Can go when the matrix' row `terminate` and tests/engine/test_terminate_in_process.py pass without it.
"""

import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

from billiard.common import TERM_SIGNAME
from celery.concurrency.thread import TaskPool
from celery.platforms import signals

from celery_kit.pools.interrupt import Interrupt
from celery_kit.pools.time_limits import TimeLimits


class Terminated(BaseException):
    """Ends a task that is to be terminated; nothing that a task should catch."""


#: In place of a return value: the task did not return.
ENDED = object()
#: `run`: the :class:`Run` of this thread, until the task's own code begins.
here = threading.local()


class Run:
    """A task of the pool. `signal`: it is to be ended, as by this signal's number; `interrupt`: its own code runs, or ran."""

    signal: int | None = None
    interrupt: Interrupt | None = None

    def terminate(self, _: Any, signal: Any = None) -> None:
        """In place of its request's: Celery's would report REVOKED at once, whether the task ends by it or not."""
        self.signal = signals.signum(signal or TERM_SIGNAME)
        if self.interrupt:
            self.interrupt.due = 0.0


def interruptible(code: Callable[..., Any]) -> Callable[..., Any]:
    """A task's own code, which can be ended while it runs."""

    @wraps(code)
    def run(*args: Any, **options: Any) -> Any:
        current = here.__dict__.pop("run", None)
        if current is None:  # called by another task, as a function
            return code(*args, **options)
        with Interrupt(float("inf"), Terminated()) as current.interrupt:
            if current.signal:
                raise Terminated
            return code(*args, **options)

    return run


class Threads(TimeLimits, TaskPool):
    """Celery's pool `threads`."""

    timeout_in = Interrupt

    def on_start(self) -> None:
        """Make the tasks of the worker's app interruptible. Called before the worker makes their traces."""
        for task in self.app.tasks.values():
            task.run = interruptible(task.run)
        super().on_start()

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        *,
        callback: Any = None,
        accept_callback: Any = None,
        **options: Any,
    ) -> Any:
        """The same for a task that can be terminated, and does not begin once it is revoked."""
        request: Any = getattr(accept_callback, "__self__", None)
        if not hasattr(request, "_announce_revoked"):  # what others hand to the pool is none of Celery's requests
            return super().apply_async(target, args, kwargs, callback=callback, accept_callback=accept_callback, **options)
        one = Run()
        request.terminate = one.terminate

        def accept(*accepted: Any) -> None:
            if not request.revoked():  # which announces that, too
                accept_callback(*accepted)

        def run(*args: Any, **kwargs: Any) -> Any:
            if request._already_revoked:
                return ENDED
            here.run = one
            try:
                return target(*args, **kwargs)
            except Terminated:
                return ENDED
            finally:
                here.__dict__.pop("run", None)

        def done(outcome: Any) -> None:
            if outcome is not ENDED:
                callback(outcome)
            elif not request._already_revoked:
                request._announce_revoked("terminated", True, one.signal, False)

        return super().apply_async(run, args, kwargs, callback=done, accept_callback=accept, **options)
