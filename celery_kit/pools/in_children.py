"""What all pools share whose tasks run in child processes: the engine can have task results carried back to the worker."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from celery.concurrency.base import BasePool

from celery_kit.base.types import Callback


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
            return super().apply_async(target, args, kwargs, **options)
        return self.carry(super().apply_async, target, args, kwargs, **options)
