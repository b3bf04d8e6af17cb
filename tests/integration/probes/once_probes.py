"""Tasks whose effect happens once. An effect is a line in a file; `once_probes.unguarded` shows what happens without."""

import time
from pathlib import Path
from typing import Any

from celery import Task, shared_task

from celery_kit.once import once

DATA = Path("/data")


def effect(file: str, gate: str = "") -> str:
    """Leave a line in `file`; before that wait until there is a file `gate`, if one is named."""
    (DATA / f"{file}.begun").open("a").write("x")
    deadline = time.monotonic() + 60
    while gate and not (DATA / gate).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(gate)
        time.sleep(0.05)  # between two looks for a file of the test, in the worker's container; it ends after a while
    with (DATA / file).open("a") as lines:
        lines.write("effect\n")
    return f"effect on {file}"


@shared_task
def unguarded(file: str, gate: str = "") -> str:
    return effect(file, gate)


@shared_task
@once(lease=20)
def guarded(file: str, gate: str = "") -> str:
    return effect(file, gate)


@shared_task
@once(lease=3)
def guarded_briefly(file: str, gate: str = "") -> str:
    return effect(file, gate)


@shared_task(bind=True)
@once(key="message")
def guarded_by_message(self: Task[Any, Any], file: str) -> str:
    return effect(file) + f" by {self.name}"


@shared_task
@once(key=lambda file, order, text: (file, order))
def guarded_by_order(file: str, order: int, text: str = "") -> str:
    return effect(file) + text


@shared_task(bind=True, max_retries=2)
@once
def guarded_and_fails_once(self: Task[Any, Any], file: str) -> str:
    if not (DATA / f"{file}.begun").exists():
        (DATA / f"{file}.begun").touch()
        raise self.retry(countdown=0)
    return effect(file)
