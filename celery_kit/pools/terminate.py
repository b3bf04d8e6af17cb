"""revoke(terminate=True) of a task that runs in a thread: Celery answers with an error, and the task goes on to its end.

A row of the pools' table names what raises an exception in such a task (`terminates`). It comes while the task's own code runs,
and at no other time: not while Celery stores a result, writes a log line or begins the next task. The task's thread says what
became of it, so that there is one outcome: that of a task which had come to its end, or REVOKED, once it has ended. A call that
waits is not cut short, and a task that catches BaseException goes on. A revoked task that waits in its worker for a thread does
not begin; Celery looks only before it is given to the pool.
Source: celery/worker/request.py 5.7.0, Request.terminate and revoked; https://github.com/celery/celery/issues/8147 and 10490.
Can go when the matrix' row `terminate` and tests/engine/test_terminate_in_process.py hold without.
"""

import threading
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

from billiard.common import TERM_SIGNAME
from celery import bootsteps
from celery.platforms import signals

from celery_kit.pools.table import row


class Terminated(BaseException):
    """Ends a task that is to be terminated; nothing that a task should catch."""


#: In place of a return value: the task did not come to its end.
ENDED = object()
#: `run`: the :class:`Run` of this thread, until the task's own code begins.
here = threading.local()


class Run:
    """A task of the pool. `signal`: it is to be ended, as by this signal's number; `interrupt`: its own code runs, or ran."""

    signal: int | None = None
    interrupt: Any = None

    def terminate(self, _: Any, signal: Any = None) -> None:
        """In place of its request's: Celery's would say REVOKED at once, whether the task ends by it or not."""
        self.signal = signals.signum(signal or TERM_SIGNAME)
        if self.interrupt:
            self.interrupt.due = 0.0


def interruptible(code: Callable[..., Any], interrupt_in: Callable[..., Any]) -> Callable[..., Any]:
    """A task's own code, which can be ended while it runs."""

    @wraps(code)
    def run(*args: Any, **options: Any) -> Any:
        current = here.__dict__.pop("run", None)
        if current is None:  # called by another task, as a function
            return code(*args, **options)
        with interrupt_in(float("inf"), Terminated()) as current.interrupt:
            if current.signal:
                raise Terminated
            return code(*args, **options)

    return run


def terminable(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    """A pool's apply_async, whose tasks can be terminated, and do not begin once they are revoked."""

    def apply(
        target: Callable[..., Any], args: Any = (), callback: Any = None, accept_callback: Any = None, **options: Any
    ) -> Any:
        request: Any = getattr(accept_callback, "__self__", None)
        if not hasattr(request, "_announce_revoked"):  # what others hand to the pool is none of Celery's requests
            return apply_async(target, args, callback=callback, accept_callback=accept_callback, **options)
        one = Run()
        request.terminate = one.terminate

        def accept(*accepted: Any) -> None:
            if not request.revoked():  # that says so, too
                accept_callback(*accepted)

        def run(*args: Any) -> Any:
            if request._already_revoked:
                return ENDED
            here.run = one
            try:
                return target(*args)
            except Terminated:
                return ENDED
            finally:
                here.__dict__.pop("run", None)

        def done(outcome: Any) -> None:
            if outcome is not ENDED:
                callback(outcome)
            elif not request._already_revoked:
                request._announce_revoked("terminated", True, one.signal, False)

        return apply_async(run, args, callback=done, accept_callback=accept, **options)

    return apply


class Step(bootsteps.StartStopStep):
    """Has a worker's tasks end so, where its pool's row names how."""

    label = "Terminate"
    # Its wrapper is the outer one: a time limit that comes while the thread says what became of a task must not end that.
    requires = ("celery.worker.consumer.connection:Connection", "celery_kit.pools.time_limits:Step")

    def include_if(self, parent: Any) -> bool:
        return bool((pool := row(parent.pool)) and pool.terminates)

    def create(self, parent: Any) -> None:
        pool = row(parent.pool)
        module, _, name = pool.terminates.partition(":") if pool else ("", "", "")
        for task in parent.app.tasks.values():
            task.run = interruptible(task.run, getattr(import_module(module), name))
        parent.pool.apply_async = terminable(parent.pool.apply_async)
