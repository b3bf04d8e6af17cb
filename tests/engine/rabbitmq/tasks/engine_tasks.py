"""The app with tasks for the engine's tests. Each run is counted independently of Celery."""

import os
import time
from typing import Any

from celery import Task
from redis import Redis

from app import app

app.conf.imports = ()
if os.environ.get("HEARTBEAT"):
    app.conf.broker_heartbeat = int(os.environ["HEARTBEAT"])
runs = Redis.from_url(os.environ["RUNS"])


@app.task(name="engine.count")
def count(number: int) -> int:
    runs.hincrby("runs", str(number), 1)
    return number


@app.task(name="engine.fail")
def fail() -> None:
    raise ValueError("no")


@app.task(name="engine.again", bind=True, max_retries=3)
def again(self: Task[Any, Any]) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task(name="engine.total")
def total(numbers: list[int]) -> int:
    return sum(numbers)


@app.task(name="engine.nap")
def nap(seconds: float) -> float:
    time.sleep(seconds)  # the work: as long as the test requires
    return seconds


@app.task(name="engine.busy")
def busy(seconds: int) -> int:
    """Compute for some time."""
    runs.hincrby("runs", str(seconds), 1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))
    return seconds


@app.task(name="engine.early", acks_late=False)
def early(number: int) -> int:
    return number


@app.task(name="engine.silent", ignore_result=True)
def silent(number: int) -> None:
    runs.hincrby("runs", str(number), 1)


@app.task(name="engine.states", bind=True)
def states(self: Task[Any, Any]) -> str:
    """Store a state while it runs, and return what other processes see."""
    self.update_state(state="PROGRESS", meta={"current": 1})
    return str(app.AsyncResult(str(self.request.id)).state)
