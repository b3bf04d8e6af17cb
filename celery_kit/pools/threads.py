"""The pool of threads. Its tasks can be terminated, by a time limit or by revoke(terminate=True).

Celery answers that command with an error on this pool, and the task runs to its end. Here an exception terminates the task. It
is raised only while the task's own code runs: not while Celery stores a result, writes a log line or starts the next task. The
task's thread reports the one outcome: that of a task which had returned already, or REVOKED once the task has ended. A blocking
call is not interrupted, and a task that catches BaseException goes on. A revoked task that waits for a thread does not start;
Celery checks that only before it hands the task to the pool.
Source: celery/worker/request.py 5.7.0, Request.terminate and revoked; https://github.com/celery/celery/issues/8147 and 10490.
Can go when the matrix' row `terminate` and tests/engine/test_terminate_in_process.py pass without it.
"""

import threading
from functools import wraps

from billiard.common import TERM_SIGNAME
from celery.concurrency.thread import TaskPool
from celery.platforms import signals

from celery_kit.base.types import Callback, WorkerRequest
from celery_kit.pools.in_process import PoolOptions
from celery_kit.pools.interrupt import Interrupt
from celery_kit.pools.time_limits import TimeLimits


class Terminated(BaseException):
    """Raised in a task to terminate it. A task should not catch it."""


#: In place of a return value: the task did not return.
ENDED = object()
#: `run`: the :class:`Run` of this thread, until the task's own code starts.
here = threading.local()


class Run:
    """A task of the pool.

    `signal`: the number of the signal that it was terminated with. `interrupt`: set once the task's own code has started.
    """

    signal: int | None = None
    interrupt: Interrupt | None = None

    def terminate(self, _: object, signal: str | int | None = None) -> None:
        """Terminate the task. Replaces Request.terminate, which would report REVOKED at once, even if the task goes on."""
        self.signal = signals.signum(signal or TERM_SIGNAME)
        if self.interrupt:
            self.interrupt.due = 0.0


def interruptible(code: Callback) -> Callback:
    """Wrap a task's own code so that it can be terminated while it runs."""

    @wraps(code)
    def run(*args: object, **options: object) -> object:
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
        """Make the tasks of the worker's app interruptible. Celery calls it before the worker makes their traces."""
        for task in self.app.tasks.values():
            task.run = interruptible(task.run)
        super().on_start()

    def prepared(self, target: Callback, options: PoolOptions) -> Callback:
        """As :meth:`TimeLimits.prepared`. The task can be terminated, and does not start once it is revoked."""
        callback = options.get("callback")
        accept_callback = options.get("accept_callback")
        request: WorkerRequest | None = getattr(accept_callback, "__self__", None)
        if request is None or not hasattr(request, "_announce_revoked"):  # other callers than Celery pass no request
            return super().prepared(target, options)
        one = Run()
        request.terminate = one.terminate

        def accept(*accepted: object) -> None:
            if not request.revoked() and accept_callback:  # revoked() also announces it
                accept_callback(*accepted)

        def run(*args: object, **kwargs: object) -> object:
            if request._already_revoked:
                return ENDED
            here.run = one
            try:
                return target(*args, **kwargs)
            except Terminated:
                return ENDED
            finally:
                here.__dict__.pop("run", None)

        def done(outcome: object) -> None:
            if outcome is not ENDED:
                if callback:
                    callback(outcome)
            elif not request._already_revoked:
                request._announce_revoked("terminated", True, one.signal, False)

        options.update(callback=done, accept_callback=accept)
        return super().prepared(run, options)
