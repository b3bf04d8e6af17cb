"""How far a long task is: the state PROGRESS with `current` of `total`, which any process can look up by the task's id.

    for picture in progress(pictures):
        ...

A write costs a round trip to the results server, so that at most one in EVERY seconds is made. Source: Celery's user guide,
"Tasks: Custom states". Needs a backend that any process can read; on others it does nothing but count.
"""

import time
from collections.abc import Collection, Iterator
from typing import Any, TypeVar

from celery._state import get_current_worker_task

from celery_kit.base.messages import PROGRESS

EVERY = 0.5  # seconds

T = TypeVar("T")


def report(current: float, total: float, **more: Any) -> None:
    """Say how far the running task is; `more` goes beside it, such as `text`. Outside of a task it does nothing."""
    task = get_current_worker_task()
    if task and not task.request.is_eager and not task.ignore_result:
        task.update_state(state=PROGRESS, meta={"current": current, "total": total, **more})


def progress(items: Collection[T]) -> Iterator[T]:
    """Give each of `items`, and report how many were done: at once, then at most each EVERY seconds."""
    told = float("-inf")
    for number, item in enumerate(items):
        if (now := time.monotonic()) - told >= EVERY:
            report(number, len(items))
            told = now
        yield item
