"""Tasks that every comparison may use."""

import time
from typing import Any

from tests.compat.side import app


@app.task(name="compat.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="compat.slow")
def slow(value: Any, seconds: float = 1.0) -> Any:
    time.sleep(seconds)  # the work
    return value


def added(x: int, y: int) -> Any:
    return add.delay(x, y).get(timeout=20)
