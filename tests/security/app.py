"""The app of a worker that gets hostile messages. Each run of a task is a line of the file RUNS."""

import os
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
