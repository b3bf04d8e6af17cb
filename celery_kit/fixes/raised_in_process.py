"""A task that raises what is no Exception - asyncio.CancelledError, say - costs a worker one of its places, or its life.

Where tasks run in the worker's own process, Celery 5.7.0 hands such an error to the callback of the tasks that have come to an
end, which unpacks three values from it: a TypeError, that ends a worker on solo, and that a thread or a greenlet swallows. The
task stays STARTED and its message unacknowledged; after as many of them as it has places the worker takes nothing more. What
leaves a task's trace as an Exception - MemoryError, Reject from a hook - is swallowed there as well.
Source: celery/concurrency/base.py, apply_target; celery/worker/request.py, on_success.

Closed by handing whatever a task raises to the pool's error_callback, as prefork does: a FAILURE with that error, its
errbacks, its place given back. SystemExit and KeyboardInterrupt are a lost worker's there. What Celery's own code raises in
order to end a worker, or a greenlet, goes its way. Can go when
tests/compat/test_raised.py::test_whatever_a_task_raises_is_its_end passes without it.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import bootsteps
from celery.exceptions import WorkerShutdown, WorkerTerminate


def meant_for(pool: Any) -> tuple[type[BaseException], ...]:
    """What leaves a task of this pool because its worker is to see it. A thread's nobody sees."""
    if pool.is_green:
        return WorkerShutdown, WorkerTerminate, import_module("greenlet").GreenletExit
    return (WorkerShutdown, WorkerTerminate, MemoryError) if pool.signal_safe else ()


def returning(apply_async: Callable[..., Any], meant: tuple[type[BaseException], ...]) -> Callable[..., Any]:
    """A pool's apply_async, whose tasks come to an end whatever they raise, but for what is `meant` for their worker."""

    def apply(
        target: Callable[..., Any], args: Any = (), callback: Any = None, error_callback: Any = None, **options: Any
    ) -> Any:
        if error_callback is None:  # no task's
            return apply_async(target, args, callback=callback, **options)

        def run(*args: Any) -> Any:
            try:
                return target(*args)
            except meant:
                raise
            except BaseException:
                return ExceptionInfo()

        def done(outcome: Any) -> Any:
            raised = isinstance(outcome, ExceptionInfo)
            try:
                return error_callback(outcome) if raised else callback(outcome)
            except meant:
                raise
            except MemoryError as error:  # Request.on_failure's, to end the worker, which it does not from here
                _fail(error_callback.__self__, error, outcome if raised else None)

        return apply_async(run, args, callback=done, error_callback=error_callback, **options)

    return apply


def _fail(request: Any, error: MemoryError, info: ExceptionInfo | None) -> None:
    """Do what a request leaves out that raises MemoryError. `info`: of an error that the task's trace has not stored."""
    request.acknowledge()
    if info:
        request.task.backend.mark_as_failure(
            request.id, error, info.traceback, request=request._context, store_result=request.store_errors
        )


class Step(bootsteps.StartStopStep):
    """Has a worker's tasks end so, where they run in its own process."""

    label = "Raised in process"
    # Its wrapper is the inner one: time limits and revocation raise errors of their own, and deal with them.
    requires = ("celery.worker.consumer.connection:Connection",)

    def include_if(self, parent: Any) -> bool:
        return not parent.pool.uses_semaphore

    def create(self, parent: Any) -> None:
        parent.pool.apply_async = returning(parent.pool.apply_async, meant_for(parent.pool))
