"""What every pool has whose tasks run in the worker's own process: whatever a task raises is its end, and a task that has
expired does not begin.

Raised. Celery 5.7.0 hands what is no Exception - asyncio.CancelledError, say - to the callback for tasks that have returned,
which unpacks three values from it: a TypeError, which ends a worker on solo, and which a thread or a greenlet swallows. The
task stays STARTED and its message unacknowledged; after as many of them as the pool has slots, the worker takes nothing more.
What leaves a task's trace as an Exception - MemoryError, Reject from a hook - is swallowed there as well. Here it goes to the
pool's error_callback, as on prefork: a FAILURE with that error, its errbacks, its slot free again. SystemExit and
KeyboardInterrupt are a lost worker's there. What Celery's own code raises to end a worker, or a greenlet, passes.
Source: celery/concurrency/base.py, apply_target; celery/worker/request.py, on_success. Can go when
tests/compat/test_raised.py::test_whatever_a_task_raises_is_its_end passes without it.

Expired. Celery checks a task's expiry when its message arrives, and on prefork again when a process is free. A pool of threads
or greenlets gets at once all that the worker prefetches - four messages a slot by Celery's default, one more for every delayed
task that it holds - and would run what has expired since. Here the task's thread checks again, as its first step.
Source: celery/worker/request.py 5.7.0, execute_using_pool, maybe_expire. Can go when the matrix' row `expires_in_its_worker`
passes without it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from typing import Any

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.utils.time import maybe_make_aware

CelerysPool: Any = BasePool  # celery-types know little of it
#: In place of a return value: the task had expired and did not run.
EXPIRED = object()


class InProcess(CelerysPool):  # type: ignore[misc]
    """A pool whose tasks run in the worker's own process."""

    @property
    def during(self) -> AbstractContextManager[Any] | None:
        """A context for the time in which the pool applies a task, if there is one."""
        return None

    @cached_property
    def passes(self) -> tuple[type[BaseException], ...]:
        """What leaves a task because the worker is to see it. On a pool of threads nobody would see it."""
        if self.is_green:
            return WorkerShutdown, WorkerTerminate, import_module("greenlet").GreenletExit
        return (WorkerShutdown, WorkerTerminate, MemoryError) if self.signal_safe else ()

    def apply_async(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        *,
        callback: Any = None,
        error_callback: Any = None,
        **options: Any,
    ) -> Any:
        """Run `target(*args, **kwargs)`: what it returns goes to `callback`, what it raises to `error_callback`."""
        if error_callback is not None:  # else it is no task's
            target, callback = self._ending(target, callback, error_callback)
        apply = super().apply_async
        if (during := self.during) is None:
            return apply(target, args, kwargs, callback=callback, error_callback=error_callback, **options)
        with during:
            return apply(target, args, kwargs, callback=callback, error_callback=error_callback, **options)

    def _ending(self, target: Callable[..., Any], callback: Any, error_callback: Any) -> tuple[Callable[..., Any], Any]:
        """What to run, and what to call with its outcome."""
        request: Any = getattr(error_callback, "__self__", None)
        expires = getattr(request, "expires", None)
        passes = self.passes

        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                if expires is not None and datetime.now(UTC) > maybe_make_aware(expires):
                    return EXPIRED
                return target(*args, **kwargs)
            except passes:
                raise
            except BaseException:
                return ExceptionInfo()

        def done(outcome: Any) -> Any:
            raised = isinstance(outcome, ExceptionInfo)
            try:
                if raised:
                    return error_callback(outcome)
                if outcome is EXPIRED:
                    return request._announce_revoked("expired", False, None, True)
                return callback(outcome)
            except passes:
                raise
            except MemoryError as error:  # Request.on_failure's, to end the worker, which it does not from here
                _fail(request, error, outcome if raised else None)

        return run, done


def _fail(request: Any, error: MemoryError, info: ExceptionInfo | None) -> None:
    """Do what a request leaves out that raises MemoryError. `info`: of an error that the task's trace has not stored."""
    request.acknowledge()
    if info:
        request.task.backend.mark_as_failure(
            request.id, error, info.traceback, request=request._context, store_result=request.store_errors
        )
