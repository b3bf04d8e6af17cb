"""The progress of a long task: the state PROGRESS with `current` of `total`, which any process can look up by the task's id.

    for picture in progress(pictures):
        ...

A write costs a round trip to the results server, so at most one is made every EVERY seconds. Source: Celery's user guide,
"Tasks: Custom states". Needs a result backend that any process can read; on others nobody sees the progress.
"""

import time
from collections.abc import Collection, Iterator
from typing import TypeVar

from celery._state import get_current_worker_task

from celery_kit.base.messages import PROGRESS

EVERY = 0.5  # seconds

T = TypeVar("T")


def report(current: float, total: float, **more: object) -> None:
    """Report the progress of the running task, with further fields such as `text`. Does nothing outside of a task."""
    task = get_current_worker_task()
    if task and not task.request.is_eager and not task.ignore_result:
        task.update_state(state=PROGRESS, meta={"current": current, "total": total, **more})


def progress(items: Collection[T]) -> Iterator[T]:
    """Yield each of `items`, and report how many are done: at once, then every EVERY seconds at most."""
    reported = float("-inf")
    for number, item in enumerate(items):
        if (now := time.monotonic()) - reported >= EVERY:
            report(number, len(items))
            reported = now
        yield item
