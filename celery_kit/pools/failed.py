"""Requests whose tasks ended in FAILURE: their messages are stored whole, and acknowledged after that.

Celery acknowledges such a message, and its arguments are gone. The class here takes the acknowledgement out of Celery's
handlers of a failure and of a hard time limit, which run in the worker's main process on every pool, and leaves it to the
worker's keeper (`celery_kit/worker/failed.py`). It adds nothing to the path of a task that succeeds.

A task has not failed if it will be retried, was rejected, ignored or revoked, raised an error that it expects (`throws`), or if
its message is requeued. Whether a task whose process was lost has failed is decided by Celery's handler, which then sends the
signal task_failure. Source: celery/worker/request.py 5.7.0, on_failure, on_timeout.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, Protocol, cast

from billiard import einfo
from billiard.einfo import ExceptionInfo
from celery import signals
from celery.exceptions import Ignore, Reject, Retry, Terminated, TimeLimitExceeded, WorkerLostError
from celery.utils import serialization
from celery.worker import state
from celery.worker.request import Request as CelerysRequest

from celery_kit.base.types import WorkerRequest

logger = logging.getLogger(__name__)
#: Exceptions that are no failure; and those of a lost process, which may be none.
NO_FAILURE = (Ignore, Reject, Retry, Terminated)
LOST = (WorkerLostError, SystemExit, KeyboardInterrupt)
#: Their stubs lack what is used here.
_billiards, _celerys = vars(einfo), vars(serialization)


class Keeper(Protocol):
    """Stores failed tasks."""

    def put(self, request: WorkerRequest, error: BaseException, traceback: str, then: Callable[[], None]) -> None:
        """Store the request's message, and call `then`, which acknowledges it, once it is stored."""


class Request(CelerysRequest):
    """Celery's Request, whose message is stored if its task fails."""

    #: The worker's; None: failed tasks are not stored.
    keeper: ClassVar[Keeper | None] = None
    _is_kept = False

    def on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool = True, return_ok: bool = False) -> None:
        """As Celery's. The message is stored before it is acknowledged. It is requeued if the failure cannot be reported."""
        with self._requeued_otherwise():
            self._on_failure(exc_info, send_failed_event, return_ok)

    def _on_failure(self, exc_info: ExceptionInfo, send_failed_event: bool, return_ok: bool) -> None:
        error = _raised(exc_info)
        if not self._can_be_kept(error):
            super().on_failure(exc_info, send_failed_event, return_ok)
            return
        failed = [] if isinstance(error, LOST) else [self.id]

        def note(task_id: str, **_: object) -> None:
            failed.extend([task_id] if task_id == self.id else [])

        if not failed:
            signals.task_failure.connect(note, weak=False)
        try:
            with self._unacknowledged() as asked:
                super().on_failure(exc_info, send_failed_event, return_ok)
        finally:
            signals.task_failure.disconnect(note)
        self._end(bool(failed), bool(asked), error, str(exc_info.traceback))

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """As Celery's. `timeout`: the limit in seconds. A message is stored at the hard limit, before it is acknowledged."""
        with self._requeued_otherwise():
            self._on_timeout(soft, timeout)

    def _on_timeout(self, soft: bool, timeout: float) -> None:
        error = TimeLimitExceeded(timeout)
        if soft or state.should_terminate or not self._can_be_kept(error):
            super().on_timeout(soft, timeout)
            return
        with self._unacknowledged() as asked:
            super().on_timeout(soft, timeout)
        self._end(True, bool(asked), error, "")

    def end_failed(self, error: BaseException, traceback: str) -> None:
        """Store the message if it has to be, and acknowledge it: for a failure that Celery's handlers leave to the pool."""
        if self._can_be_kept(error):
            self._end(True, True, error, traceback)
        else:
            self.acknowledge()

    def _can_be_kept(self, error: BaseException) -> bool:
        task = self.task
        return (
            self.keeper is not None
            and not self._is_kept  # prefork calls both handlers at the hard limit
            and bool(getattr(task, "keep_failed", True))
            and not isinstance(error, NO_FAILURE)
            and not isinstance(error, task.throws or ())
            and not cast(WorkerRequest, self)._already_revoked
        )

    @contextmanager
    def _requeued_otherwise(self) -> Iterator[None]:
        """A context that requeues the message after an error, which is one of the results server or of the broker.

        A living worker would hold it until its end: it is neither acknowledged nor does anybody run it.
        """
        try:
            yield
        except MemoryError:  # by which Celery stops the worker
            raise
        except Exception as error:
            name, task_id = self.task.name, self.id
            logger.exception("the failure of task %s[%s] cannot be reported: its message is requeued: %r", name, task_id, error)
            try:
                self.reject(requeue=True)
            except Exception as refused:
                logger.error("the message of task %s[%s] is requeued later: %r", name, task_id, refused)

    @contextmanager
    def _unacknowledged(self) -> Iterator[list[bool]]:
        """A context in which the message is not acknowledged. Its value is not empty once Celery has asked for that."""
        asked: list[bool] = []
        vars(self)["acknowledge"] = lambda: asked.append(True)
        try:
            yield asked
        finally:
            del vars(self)["acknowledge"]

    def _end(self, failed: bool, asked: bool, error: BaseException, traceback: str) -> None:
        """Have the keeper store the message if the task has failed and will not be redelivered. `asked`: to acknowledge it."""
        acknowledge = partial(type(self).acknowledge, self)
        if self.keeper and failed and (asked or not self.task.acks_late):
            self._is_kept = True
            vars(self)["acknowledge"] = lambda: None
            self.keeper.put(cast(WorkerRequest, self), error, traceback, acknowledge)
        elif asked:
            acknowledge()


def _raised(info: ExceptionInfo) -> BaseException:
    """The exception of a task, also one that its child process could not pickle."""
    error = info.exception
    if isinstance(error, _billiards["ExceptionWithTraceback"]):
        error = error.exc
    restored: BaseException = _celerys["get_pickled_exception"](error)
    return restored
