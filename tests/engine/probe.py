"""The app of a worker in tests of the engines: the kit's, or with PLAIN=1 plain Celery's with the same settings."""

import os
from typing import Any

from celery import Celery

app: Celery
if os.environ.get("PLAIN"):
    app = Celery("plain")
    app.conf.update(
        broker_url=os.environ["CELERY_BROKER_URL"],
        result_backend=os.environ["CELERY_RESULT_BACKEND"],
        task_acks_late=True,
        worker_prefetch_multiplier=int(os.environ.get("PREFETCH") or 4),
        broker_connection_retry_on_startup=True,
        task_default_queue=os.environ.get("QUEUE") or "celery",
        worker_hijack_root_logger=False,
    )
else:
    from app import app

    app.conf.task_default_queue = os.environ.get("QUEUE") or "celery"
    if prefetch := os.environ.get("PREFETCH"):
        app.conf.worker_prefetch_multiplier = int(prefetch)
app.conf.task_track_started = False
if os.environ.get("THREAD_SAFE"):
    app.conf.result_backend_thread_safe = True
if seconds := os.environ.get("VISIBILITY"):
    app.conf.broker_transport_options = {**app.conf.broker_transport_options, "visibility_timeout": float(seconds)}


@app.task(name="engine.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="engine.wait")
def wait(seconds: float) -> float:
    import time

    time.sleep(seconds)  # the work: as long as the test requires
    return seconds


@app.task(name="engine.step", bind=True)
def step(self: Any, seconds: float, folder: str) -> float:
    """Wait in short steps. Creates a file with its name when it begins."""
    import time
    from pathlib import Path

    (Path(folder) / self.request.id).touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.002)  # a step of the work: an exception reaches a thread between two steps
    return seconds


@app.task(name="engine.echo")
def echo(value: Any) -> int:
    return len(value)


_runs: Any = None


@app.task(name="engine.stamp", bind=True)
def stamp(self: Any, due: float) -> None:
    """Note when this task runs, and when it is due (seconds since 1970), in the list `QUEUE-runs` of the results server."""
    import time

    from redis import Redis

    global _runs
    at, _runs = time.time(), _runs or Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    _runs.rpush(f"{os.environ['QUEUE']}-runs", f"{self.request.id} {due!r} {at!r}")


@app.task(name="engine.again", bind=True)
def again(self: Any, seconds: float) -> None:
    """Retry once, in some seconds. The second try notes it at the results server."""
    from redis import Redis

    if not self.request.retries:
        raise self.retry(countdown=seconds)
    Redis.from_url(os.environ["CELERY_RESULT_BACKEND"]).set(f"{os.environ['QUEUE']}-{self.request.id}", self.request.retries)


@app.task(name="engine.keep_the_lock")
def keep_the_lock() -> None:
    """Take the lock of the counter that billiard shares between the worker and this child."""
    from billiard import current_process

    vars(current_process())["_target"].on_ready_counter.get_lock().acquire()


def _hold(queue: str, name: str) -> None:
    """Report that it has begun, and run until the test ends it."""
    import time

    from redis import Redis

    redis = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    redis.set(f"{queue}-{name}", 1)
    while not redis.get(f"{queue}-end"):
        time.sleep(0.02)  # the work: it looks whether the test has ended it


@app.task(name="engine.where", bind=True)
def where(self: Any, key: str, first: float) -> str:
    """Note in the list `key` which worker runs it. The first run computes for so many seconds, and lets nothing else run."""
    import time

    from redis import Redis

    redis = Redis.from_url(os.environ["CELERY_RESULT_BACKEND"])
    if redis.rpush(f"{key}-{self.request.id}", self.request.hostname) == 1:
        end = time.monotonic() + first
        while time.monotonic() < end:
            pass
    return str(self.request.hostname)


if not os.environ.get("PLAIN"):
    from celery_kit.once import once

    app.task(name="engine.once_long")(once(lease=60)(_hold))
    app.task(name="engine.once_short")(once(lease=1)(_hold))
