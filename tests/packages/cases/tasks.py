"""Tasks that the cases of several packages share."""

import os
from typing import Any

from redis import Redis

from tests.compat.side import app

#: Where a task leaves words for a test.
NOTES = Redis.from_url(os.environ["LOCKS"], decode_responses=True)
KEY = f"{os.environ['QUEUE']}:notes"


@app.task(name="packages.works")
def works(word: str) -> str:
    return word


@app.task(name="packages.fails")
def fails(word: str) -> None:
    raise ValueError(word)


@app.task(name="packages.note")
def note(word: str) -> None:
    NOTES.rpush(KEY, word)


def send_each_way() -> None:
    """Send two calls of a task, one by its name and one that fails, and wait until all have run."""
    results: list[Any] = [works.delay("first"), works.delay("second"), app.send_task(works.name, ("named",)), fails.delay("x")]
    for result in results:
        result.get(timeout=20, propagate=False)
