"""Tasks that every comparison may use."""

import os
import time
from typing import Any

from redis import Redis

from tests.compat.side import app


@app.task(name="compat.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="compat.slow")
def slow(value: Any, seconds: float = 1.0) -> Any:
    time.sleep(seconds)  # the work of this task: as long as the test asks for
    return value


def added(x: int, y: int) -> Any:
    return add.delay(x, y).get(timeout=20)


@app.task(name="compat.mark")
def mark(word: str) -> str:
    """Store a word on the results server, for a test that sends messages without Celery."""
    Redis.from_url(os.environ["CELERY_RESULT_BACKEND"]).rpush("marks", word)
    return word
