"""What every pool has whose tasks run in child processes: a place for the engine, which carries results back to the worker."""

from collections.abc import Callable
from typing import Any

from celery.concurrency.base import BasePool

CelerysPool: Any = BasePool  # celery-types know little of it


class InChildren(CelerysPool):  # type: ignore[misc]
    """A pool whose tasks run in child processes.

    `carry(apply_async, target, args, kwargs, **options)`, if the engine has set it, hands a task to `apply_async` in such a
    way that its result comes back to this process (celery_kit/engine/commit_child.py).
    """

    carry: Callable[..., Any] | None = None

    def apply_async(self, target: Callable[..., Any], args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Run `target(*args, **kwargs)` in a child, as Celery's, and hand its outcome to its `callback`."""
        if self.carry is None:
            return super().apply_async(target, args, kwargs, **options)
        return self.carry(super().apply_async, target, args, kwargs, **options)
