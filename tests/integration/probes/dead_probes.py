"""Tasks that fail, or end the process that they run in."""

import os
import signal
from pathlib import Path
from typing import Any

from celery import Task, shared_task

DATA = Path("/data")


@shared_task
def kills_until_cured(name: str) -> int:
    """Kill the process, each time, until the file `name`.cured is there; gives the number of tries."""
    with (DATA / name).open("a") as file:
        file.write("x")
    if not (DATA / f"{name}.cured").exists():
        # A container's first process is deaf to a SIGKILL from inside.
        os._exit(1) if os.getpid() == 1 else os.kill(os.getpid(), signal.SIGKILL)
    return len((DATA / name).read_text())


@shared_task(bind=True)
def fails_until_cured(self: Task[Any, Any], name: str, number: int) -> int:
    """Fail until the file `name`.cured is there. Each run is a line with the task's id and its argument."""
    with (DATA / name).open("a") as file:
        file.write(f"{self.request.id} {number}\n")
    if not (DATA / f"{name}.cured").exists():
        raise ValueError(f"number {number}")
    return number
