"""The app of a worker that gets hostile messages. Each run of a task is a line of the file RUNS."""

import os
import time
from typing import Any

from app import app

RUNS = os.environ.get("RUNS", os.devnull)


def note() -> None:
    file = os.open(RUNS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, b"x\n")
    finally:
        os.close(file)


@app.task(name="security.touch")
def touch(*args: Any, **kwargs: Any) -> int:
    note()
    return len(args) + len(kwargs)


@app.task(name="security.canary")
def canary(number: int) -> int:
    return number


@app.task(name="security.hold")
def hold() -> None:
    """Runs until the file `RUNS.go` is there."""
    note()
    while not os.path.exists(f"{RUNS}.go"):  # noqa: PTH110  # a worker's stop interrupts it
        time.sleep(0.1)  # until the test lets it end


@app.task(name="security.again", bind=True, max_retries=1)
def again(self: Any) -> int:
    """Is tried twice."""
    note()
    if not self.request.retries:
        raise self.retry(countdown=1)
    return int(self.request.retries)


@app.task(name="security.add")
def add(*numbers: Any) -> int:
    """The sum, also of a list of numbers."""
    return sum(sum(one) if isinstance(one, list) else one for one in numbers)
