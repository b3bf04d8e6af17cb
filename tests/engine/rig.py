"""Workers of a small app with a Redis server for the tests: the kit's on either engine, and plain Celery's."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery

from tests.harness.servers import Server
from tests.harness.workers import PLAIN_CELERY, Process, wait_for_worker, worker_argv


class Worker(Process):
    """A worker process of `tests/engine/probe.py` on a queue; `engine` may be :data:`PLAIN_CELERY`."""

    def __init__(self, server: Server, pool: str, engine: str, queue: str, *options: str, **environ: str) -> None:
        log = Path(server.folder.name) / f"{queue}-{uuid4().hex[:6]}.log"
        chosen = {"PLAIN": "1"} if engine == PLAIN_CELERY else {"ENGINE": engine}
        argv = worker_argv("tests.engine.probe", pool, queue, *options)
        super().__init__(argv, log, {**server.urls, **chosen, "QUEUE": queue, **environ})

    def ready(self) -> "Worker":
        wait_for_worker(self)
        return self


@contextmanager
def worker(server: Server, pool: str, engine: str, queue: str, *options: str, **environ: str) -> Iterator[Worker]:
    one = Worker(server, pool, engine, queue, *options, **environ)
    try:
        yield one.ready()
    finally:
        one.kill()


def producer(server: Server, **settings: Any) -> Celery:
    """A producer without the kit: it sends the same messages as plain Celery."""
    app = Celery("producer", set_as_current=False)
    app.conf.update(
        broker_url=server.urls["CELERY_BROKER_URL"], result_backend=server.urls["CELERY_RESULT_BACKEND"], **settings
    )
    return app


def send(
    app: Celery, queue: str, count: int, task: str = "engine.add", args: tuple[Any, ...] = (1, 2), **options: Any
) -> list[str]:
    """Send a task a number of times. Returns the ids."""
    with app.producer_pool.acquire(block=True) as one:
        return [app.send_task(task, args, queue=queue, producer=one, **options).id for _ in range(count)]


def done(server: Server, ids: list[str]) -> int:
    """The number of these tasks that have a result."""
    return sum(value is not None for value in server.results.mget([f"celery-task-meta-{one}" for one in ids]))
