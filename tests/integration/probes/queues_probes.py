"""Tasks that say where and in which order they run."""

from pathlib import Path
from typing import Any

from celery import Task, shared_task

DATA = Path("/data")


@shared_task(bind=True)
def where(self: Task[Any, Any]) -> str:
    """The worker's node name."""
    return str(self.request.hostname)


def _priority(task: Task[Any, Any]) -> Any:
    return dict(task.request.delivery_info or {}).get("priority")


@shared_task(bind=True)
def priority(self: Task[Any, Any]) -> Any:
    """The priority that the message came with."""
    return _priority(self)


@shared_task(bind=True)
def priority_of_retry(self: Task[Any, Any]) -> Any:
    if not self.request.retries:
        raise self.retry(countdown=1)
    return _priority(self)


@shared_task
def note(log: str, what: str) -> None:
    """Append to a log what runs."""
    with open(DATA / log, "a") as file:
        file.write(f"{what}\n")
