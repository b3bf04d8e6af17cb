"""The app of workers whose tasks fail, each in its own way, until the file `cured` is in the folder FOLDER."""

import os
import time
from pathlib import Path
from typing import Any

from app import app

FOLDER = Path(os.environ.get("FOLDER") or ".")


class OddError(Exception):
    """Neither its text nor the exception itself can be taken to another process."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.held = lambda: text

    def __str__(self) -> str:
        raise RuntimeError("no text")


def ran(task: Any) -> list[Any] | None:
    """Note a run of a task. Returns what it is known by once it is cured, otherwise None."""
    if not (FOLDER / "cured").exists():
        return None
    with (FOLDER / f"ran-{task.request.id}").open("a") as file:
        file.write("x")
    return [task.request.root_id, (task.request.headers or {}).get("mark"), task.request.retries]


@app.task(bind=True, name="failing.raises")
def raises(self: Any, number: int) -> Any:
    if found := ran(self):
        return found
    raise ValueError(f"number {number}")


@app.task(bind=True, name="failing.retries", max_retries=2)
def retries(self: Any, number: int) -> Any:
    if found := ran(self):
        return found
    raise self.retry(countdown=0, exc=KeyError(number))


@app.task(bind=True, name="failing.odd")
def odd(self: Any, number: int) -> Any:
    if found := ran(self):
        return found
    raise OddError(f"number {number}")


@app.task(bind=True, name="failing.late", time_limit=1)
def late(self: Any, number: int) -> Any:
    return ran(self) or _work()


@app.task(bind=True, name="failing.late_softly", soft_time_limit=1, time_limit=30)
def late_softly(self: Any, number: int) -> Any:
    return ran(self) or _work()


def _work() -> Any:
    while True:
        time.sleep(0.01)  # a step of the work: an exception reaches a thread between two steps


@app.task(bind=True, name="failing.lost", reject_on_worker_lost=False)
def lost(self: Any, number: int) -> Any:
    if found := ran(self):
        return found
    os._exit(3)


@app.task(bind=True, name="failing.expected", throws=(LookupError,))
def expected(self: Any, number: int) -> Any:
    raise KeyError(number)


@app.task(bind=True, name="failing.unkept", keep_failed=False)
def unkept(self: Any, number: int) -> Any:
    raise ValueError(number)


@app.task(name="failing.ignored")
def ignored(number: int) -> Any:
    from celery.exceptions import Ignore

    raise Ignore


@app.task(name="failing.succeeds")
def succeeds(number: int) -> int:
    return number
