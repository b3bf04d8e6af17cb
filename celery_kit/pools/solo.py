"""The pool without threads or processes: a task runs in the worker's main thread, and its loop waits meanwhile."""

from contextlib import AbstractContextManager

from celery.concurrency.solo import TaskPool

from celery_kit.pools.interrupt import Interrupt
from celery_kit.pools.lifeline import lifeline
from celery_kit.pools.time_limits import TimeLimits


class Solo(TimeLimits, TaskPool):
    """Celery's pool `solo`."""

    timeout_in = Interrupt

    @property
    def during(self) -> AbstractContextManager[object] | None:
        """A context in which the worker's connections send their heartbeats while a task runs, or None."""
        return lifeline if lifeline.is_needed else None
