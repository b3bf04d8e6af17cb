"""Tasks for these tests. A worker imports them by `-I tests.operator.probes`."""

import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.contrib import rdb
from celery.utils.log import get_task_logger

from celery_kit import progress

logger = get_task_logger(__name__)


@shared_task
def say(*_: Any) -> None:
    """Log a line by the task logger."""
    logger.info("said by a task")


@shared_task(bind=True)
def again(self: Task[Any, Any]) -> None:
    """Fail once, retry at once, and log that."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    say()


@shared_task
def send_on() -> None:
    """Send another task."""
    say.delay()


@shared_task
def fail() -> None:
    raise ValueError("as asked")


@shared_task
def wait(seconds: float) -> None:
    time.sleep(seconds)


@shared_task
def count(number: int, gate: str) -> int:
    """Report progress. At the middle, wait until the file `gate` exists."""
    for current in progress.progress(range(number)):
        if current == number // 2:
            progress.report(current, number, text="half way")
            while not Path(gate).exists():
                time.sleep(0.05)
    return number


@shared_task
def meet(number: int) -> None:
    """Log a line before and after a pause, so that tasks of one worker overlap."""
    logger.info("begin %s", number)
    time.sleep(0.2)
    logger.info("end %s", number)


@shared_task
def stop(number: int) -> int:
    """Wait for a connection to Celery's remote debugger."""
    rdb.set_trace()
    return number + 1
