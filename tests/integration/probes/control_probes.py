"""Tasks that remote control has to do with: they say when they start, and wait until they may end."""

import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task
from celery.worker.control import inspect_command

DATA = Path("/data")


def _wait_for(gate: str) -> None:
    for _ in range(1200):
        if (DATA / f"{gate}.open").exists():
            return
        time.sleep(0.05)  # between two looks for a file of the test, in the worker's container; it ends after a while
    raise TimeoutError(gate)


@shared_task(bind=True)
def hold(self: Task[Any, Any], gate: str) -> str:
    """Say that it runs, and run until the test opens the gate."""
    (DATA / f"{gate}.{self.request.id}.runs").touch()
    _wait_for(gate)
    (DATA / f"{gate}.{self.request.id}.ended").touch()
    return "held"


@shared_task
def hold_limited(gate: str) -> str:
    """A task of its own, so that its new time limits disturb nobody."""
    (DATA / f"{gate}.runs").touch()
    _wait_for(gate)
    return "held"


@shared_task
def note(log: str, what: str) -> None:
    """Append to a log what runs, and when: seconds by the worker's clock."""
    with open(DATA / log, "a") as file:
        file.write(f"{time.monotonic():.3f} {what}\n")


@shared_task
def note_rarely(log: str, what: str) -> None:
    """A task of its own, so that its rate limit disturbs nobody."""
    note(log, what)


@inspect_command(args=[("number", int)], signature="<number>")
def doubled(state: Any, number: int) -> dict[str, int]:
    """A remote control command of the user's own."""
    return {"doubled": 2 * number}
