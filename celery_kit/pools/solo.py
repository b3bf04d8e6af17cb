"""The pool of one thread, which is the worker's own: while a task runs, the worker's loop does not."""

from contextlib import AbstractContextManager
from typing import Any

from celery.concurrency.solo import TaskPool

from celery_kit.pools.interrupt import Interrupt
from celery_kit.pools.lifeline import lifeline
from celery_kit.pools.time_limits import TimeLimits


class Solo(TimeLimits, TaskPool):
    """Celery's pool `solo`."""

    timeout_in = Interrupt

    @property
    def during(self) -> AbstractContextManager[Any] | None:
        """The heartbeats of the worker's connections go on while a task runs."""
        return lifeline if lifeline.is_needed else None
