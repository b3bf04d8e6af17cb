"""What all pools share whose tasks run in child processes: the engine can have task results carried back to the worker."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.concurrency.base import BasePool

from celery_kit.base.types import Callback
from celery_kit.pools.measures import accepting, ending, request_of


class InChildren(BasePool):
    """A pool whose tasks run in child processes.

    The engine may set `carry(apply_async, target, args, kwargs, **options)`. It calls `apply_async` in such a way that the
    task's result comes back to the worker's process (celery_kit/engine/commit_child.py).
    """

    carry: Callable[..., object] | None = None

    def apply_async(
        self,
        target: Callback,
        args: Sequence[object] | None = None,
        kwargs: Mapping[str, object] | None = None,
        **options: Any,
    ) -> object:
        """Run `target(*args, **kwargs)` in a child, as Celery's own pool does. `options`: Celery's, callbacks among them."""
        if self.carry is None:
            return self._counted(target, args, kwargs, **options)
        return self.carry(self._counted, target, args, kwargs, **options)

    def _counted(
        self,
        *what: object,
        callback: Callback | None = None,
        error_callback: Callback | None = None,
        accept_callback: Callback | None = None,
        **options: object,
    ) -> object:
        """Celery's apply_async, where the task's start and end are counted."""
        if request := request_of(error_callback):
            accept_callback = accepting(request, accept_callback)
            callback, error_callback = ending(request, callback), ending(request, error_callback)
        return super().apply_async(
            *what, callback=callback, error_callback=error_callback, accept_callback=accept_callback, **options
        )
