"""A broker, a pool and an engine: a producer and workers on this machine that share an empty broker."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import requests
from redis import Redis

from celery_kit.base.choices import ENGINES
from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from testbed.places import Place
from tests.harness.waiting import until
from tests.harness.workers import CONCURRENCY, PLAIN_CELERY, kill

QUEUE = "crash"
#: The kit's engines, and plain Celery, which only gets acks_late, and the kit's visibility timeout and sweeps.
ALL_ENGINES = (*ENGINES, PLAIN_CELERY)
VISIBILITY = 5
#: Hours in production: short here, so that a trial can wait for it. The interval of the sweeps is the kit's.
TRANSPORT_OPTIONS: dict[str, dict[str, object]] = {
    "redis": {"visibility_timeout": VISIBILITY, "unacked_restore_interval": 5, "unacked_restore_throttle": 1},
    "rabbitmq": {},
}
BROKERS = tuple(TRANSPORT_OPTIONS)
#: Seconds without any change, after which a trial counts as settled.
QUIET = {"redis": VISIBILITY + 25.0, "rabbitmq": 20.0}


class Setup:
    """Use it in a `with`, at whose end all of its processes are killed. `concurrency`: tasks at once; None: the default."""

    def __init__(self, place: Place, broker: str, pool: str, engine: str, concurrency: int | None = None) -> None:
        self.place, self.broker, self.pool, self.engine = place, broker, pool, engine
        self.concurrency = concurrency or CONCURRENCY[pool]
        self.results: Any = Redis.from_url(place.results_url)
        address = f"{place.results_url.rpartition('/')[0]}/3"  # its own database
        self.runs: Any = Redis.from_url(address)
        self.folder = tempfile.TemporaryDirectory(prefix="celery-kit-crash-")
        self.log = Path(self.folder.name) / "worker.log"
        self.sent = 0
        self.processes: list[subprocess.Popen[Any]] = []
        self.environ = {
            **{name: value for name, value in os.environ.items() if name not in {"BROKER", "BACKEND", "POOL", "PART"}},
            "CELERY_BROKER_URL": place.broker_url,
            "CELERY_RESULT_BACKEND": place.results_url,
            "RUNS": address,
            "QUEUE": QUEUE,
            "ENGINE": engine,
            "TRANSPORT_OPTIONS": json.dumps(TRANSPORT_OPTIONS[broker]),
            "DATA_DIR": self.folder.name,
        }

    def __enter__(self) -> "Setup":
        self.producer = self._start([sys.executable, "-m", "tests.crash.work"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            kill(process)
        self.folder.cleanup()

    def _start(self, argv: list[str], log: IO[Any] | None = None, **options: Any) -> subprocess.Popen[Any]:
        options = {"stdout": log, **options}
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=self.environ,
            stderr=log,
            text=True,
            start_new_session=True,  # prefork's children are killed with it
            **options,
        )
        self.processes.append(process)
        return process

    def send(self, name: str, count: int) -> None:
        """Send some tasks, and wait until the broker has them."""
        stdin, stdout = self.producer.stdin, self.producer.stdout
        assert stdin and stdout
        stdin.write(f"{name} {count}\n")
        stdin.flush()
        assert stdout.readline(), "the producer ended"
        self.sent += count

    def worker(self, *options: str) -> subprocess.Popen[Any]:
        argv = [sys.executable, "-m", "celery", "-A", "tests.crash.work", "worker", "--pool", self.pool, "-Q", QUEUE]
        argv += ["-n", f"{time.monotonic_ns()}@crash", "-l", "WARNING", "-c", str(self.concurrency), *options]
        flags = () if self.engine == PLAIN_CELERY else POOLS[self.pool].worker_flags
        with self.log.open("a") as log:
            return self._start([*argv, *flags], log)

    def done(self) -> int:
        """The number of tasks that were begun at least once."""
        return int(self.runs.hlen("runs"))

    def executions(self) -> list[int]:
        """How often each task was begun."""
        return [int(times) for times in self.runs.hvals("runs")]

    def stored(self, first: int = 0) -> int:
        """The number of tasks with the state SUCCESS, from the `first`th on."""
        found = self.results.mget([f"celery-task-meta-crash-{number}" for number in range(first, self.sent)])
        return sum(bool(value) and json.loads(value)["status"] == "SUCCESS" for value in found)

    def left(self) -> int:
        """The number of messages on the broker: waiting and unacknowledged."""
        return self.place.broker()["messages"]

    def settle(self) -> None:
        """Wait until every task has its result and no message is left, or until nothing changes any more."""
        last: list[object] = []
        since = time.monotonic()

        def settled() -> bool:
            nonlocal last, since
            now: list[object] = [self.stored(), sum(self.executions()), self.left()]
            if now != last:
                last, since = now, time.monotonic()
            return now[::2] == [self.sent, 0] or time.monotonic() > since + QUIET[self.broker]

        until("nothing changes any more", settled, 600, every=0.2)

    @contextmanager
    def flower(self, port: int) -> Iterator[str]:
        """Start Flower on this broker. Yields the URL of its metrics."""
        address = ["--address=127.0.0.1", f"--port={port}"]
        with self.log.open("a") as log:
            flower = self._start([sys.executable, "-m", "celery", "-A", "tests.crash.work", "flower", *address], log)
        url = f"http://127.0.0.1:{port}/metrics"

        def answers() -> bool:
            try:
                return requests.get(url, timeout=5).ok
            except requests.ConnectionError:
                return False

        try:
            until("Flower answers", answers, 60)
            yield url
        finally:
            kill(flower)
