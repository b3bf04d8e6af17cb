"""What all pools share whose tasks run in the worker's own process: any exception of a task fails that task only, and a task
does not start if it has expired, or if its message is no longer the worker's.

Raised. Celery 5.7.0 hands a BaseException that is no Exception (asyncio.CancelledError, for example) to the callback for tasks
that have returned. That callback unpacks three values from it and raises a TypeError, which kills a worker on solo and is
swallowed by a thread or a greenlet. The task stays STARTED and its message unacknowledged. Once there are as many of these as
the pool has slots, the worker consumes no more. An Exception that leaves a task's trace, such as a MemoryError or a hook's
Reject, is swallowed too. Here all of these go to the pool's error_callback, as on prefork: the task fails with that error, its
errbacks are called and its slot is free again. SystemExit and KeyboardInterrupt count as a lost worker there. Exceptions by
which Celery's own code stops the worker or a greenlet are raised as they are.
Source: celery/concurrency/base.py, apply_target; celery/worker/request.py, on_success. Can go when
tests/compat/test_raised.py::test_whatever_a_task_raises_is_its_end passes without it.

Expired. Celery checks a task's expiry when its message arrives, and on prefork again when a process is free. A pool of threads
or greenlets gets all that the worker prefetches at once: by Celery's default four messages a slot, and one more for every
delayed task that the worker holds. Such a pool would run tasks that have expired since. Here the task's thread checks again, as
its first step.
Source: celery/worker/request.py 5.7.0, execute_using_pool, maybe_expire. Can go when the matrix' row `expires_in_its_worker`
passes without it.

No longer the worker's. A pool of threads or greenlets goes on with the tasks that it got before its worker lost its connection,
or was frozen and taken for dead, although their messages are requeued by then. Here the task's thread asks the message's
channel, if that knows (celery_kit/brokers/redis/leases.py), before the task is reported as started or acknowledged early.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import cached_property
from importlib import import_module
from typing import Any, TypeAlias

from billiard.einfo import ExceptionInfo
from celery.concurrency.base import BasePool
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.utils.time import maybe_make_aware

from celery_kit.base.types import Callback, WorkerRequest
from celery_kit.pools.measures import measures, request_of

#: What Celery gives a pool with a task, by name: callbacks, and the time limits in seconds.
PoolOptions: TypeAlias = dict[str, Any]
#: In place of a return value: the task had expired, or belongs to another worker, and did not run.
EXPIRED, GONE = object(), object()


class InProcess(BasePool):
    """A pool whose tasks run in the worker's own process."""

    @property
    def during(self) -> AbstractContextManager[object] | None:
        """The context in which the pool applies a task, or None."""
        return None

    @cached_property
    def passes(self) -> tuple[type[BaseException], ...]:
        """Exceptions that are raised to the worker's loop. On a pool of threads they could not reach it: there, none is."""
        if self.is_green:
            return WorkerShutdown, WorkerTerminate, import_module("greenlet").GreenletExit
        return (WorkerShutdown, WorkerTerminate, MemoryError) if self.signal_safe else ()

    def apply_async(
        self,
        target: Callback,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        **options: Any,
    ) -> object:
        """Run `target(*args, **kwargs)`; call `callback` with its return value, or `error_callback` with its exception.

        `options`: Celery's, the callbacks among them.
        """
        target = self.prepared(target, options)
        if (during := self.during) is None:
            return super().apply_async(target, args, kwargs, **options)
        with during:
            return super().apply_async(target, args, kwargs, **options)

    def prepared(self, target: Callback, options: PoolOptions) -> Callback:
        """What to run in place of `target`. Puts its own callbacks into the `options` of :meth:`apply_async`."""
        error_callback: Callback | None = options.get("error_callback")
        if error_callback is None:  # the target is no task
            return target
        callback: Callback | None = options.get("callback")
        accept_callback: Callback | None = options.get("accept_callback")
        request = request_of(error_callback)
        expires = request.expires if request else None
        holds: Callback | None = getattr(getattr(request.message, "channel", None), "holds", None) if request else None
        passes, gone = self.passes, False

        def accept(*accepted: object) -> None:
            nonlocal gone
            if holds and request and not holds(request.message.delivery_tag):
                gone = True
                return
            if request:
                measures.begins(request)
            if accept_callback:
                accept_callback(*accepted)

        def run(*args: object, **kwargs: object) -> object:
            try:
                if expires is not None and datetime.now(UTC) > maybe_make_aware(expires):
                    return EXPIRED
                return GONE if gone else target(*args, **kwargs)
            except passes:
                raise
            except BaseException:
                return ExceptionInfo()

        def done(outcome: object) -> None:
            raised = outcome if isinstance(outcome, ExceptionInfo) else None
            if request and outcome is not EXPIRED and outcome is not GONE:
                measures.ends(request, outcome)
            try:
                if raised:
                    error_callback(raised)
                elif outcome is EXPIRED and request:
                    request._announce_revoked("expired", False, None, True)
                elif outcome is GONE and request:
                    import_module("celery.worker.state").task_ready(request)
                elif callback:
                    callback(outcome)
            except passes:
                raise
            except MemoryError as error:  # Request.on_failure raises it to stop the worker, which cannot work from here
                if request:
                    _fail(request, error, raised, str(raised or (outcome[1] if isinstance(outcome, tuple) else "")))

        options["callback"], options["accept_callback"] = done, accept
        return run


def _fail(request: WorkerRequest, error: MemoryError, info: ExceptionInfo | None, traceback: str) -> None:
    """Do the rest of Request.on_failure, which raised MemoryError. `info`: an error that the task's trace has not stored."""
    if end_failed := getattr(request, "end_failed", None):  # celery_kit/pools/failed.py
        end_failed(error, traceback)
    else:
        request.acknowledge()
    if info:
        request.task.backend.mark_as_failure(
            request.id, error, info.traceback, request=request._context, store_result=request.store_errors
        )
