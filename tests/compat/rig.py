"""The three sides of a comparison on one server: a worker and clients of plain Celery, and of the kit on either engine."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery_kit.base.target import ROOT
from tests.harness.workers import PLAIN_CELERY, Process, wait_for_worker, worker_argv

#: Celery without the kit, and the kit's engines.
SIDES = (PLAIN_CELERY, "plain", "fast")
KIT = SIDES[1:]
#: The app of each side, as `celery -A` names it.
APP = "tests.compat.side"
#: Seconds after which a client that has not exited counts as hanging.
CLIENT_SECONDS = 60


@dataclass(frozen=True)
class Place:
    """Where a broker and a results server are. `name`: the broker's."""

    name: str
    broker: str
    results: str

    def __str__(self) -> str:
        return self.name


@dataclass
class Side:
    """One side on one place: its own queue, and the environment of its processes."""

    name: str
    place: Place
    environ: dict[str, str] = field(default_factory=dict)
    queue: str = ""
    interpreter: str = sys.executable
    running: Process | None = None

    def __post_init__(self) -> None:
        self.queue = self.queue or f"compat-{self.name}-{uuid4().hex[:8]}"

    @property
    def own(self) -> dict[str, str]:
        """The environment variables of a process of this side."""
        engine = {} if self.name == PLAIN_CELERY else {"ENGINE": self.name}
        servers = {"CELERY_BROKER_URL": self.place.broker, "CELERY_RESULT_BACKEND": self.place.results}
        return {**servers, **engine, "SIDE": self.name, "QUEUE": self.queue, **self.environ}

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, **self.own, **more}

    def python(self, *argv: str, **environ: str) -> "subprocess.Popen[str]":
        """Run a process of this side, and capture its output."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.interpreter, *argv], cwd=ROOT, env=self.environment(**environ), stdout=pipe, stderr=pipe, text=True
        )

    def client(self, where: str, *arguments: Any, seconds: float = CLIENT_SECONDS, **environ: str) -> Any:
        """The result of a function `module:name` of tests/compat/cases in a new process; {"raised": …} for an error.

        For a process without a result after `seconds`, it is {"hangs": seconds}.
        """
        words = [json.dumps(one) for one in arguments]
        with self.python("-m", "tests.compat.side", where, *words, **environ) as process:
            try:
                out, err = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return {"hangs": seconds}
        assert process.returncode == 0 and out.strip(), f"{self.name}: {where} ended with {process.returncode}\n{out}\n{err}"
        outcome = json.loads(out.strip().splitlines()[-1])
        return outcome.get("gave", outcome)

    def start(self, pool: str, *options: str, concurrency: str = "", **environ: str) -> "Side":
        """Start a worker of this side, and wait until it consumes."""
        argv = worker_argv(APP, pool, self.queue, *options, concurrency=concurrency)
        log = Path(tempfile.gettempdir()) / f"{self.queue}.log"
        self.running = Process(argv, log, self.environment(POOL=pool, **environ), self.interpreter)
        wait_for_worker(self.running)
        return self

    @property
    def said(self) -> str:
        """The worker's log."""
        return self.running.said if self.running else ""

    @property
    def pid(self) -> int:
        """The worker's process id."""
        assert self.running
        return self.running.process.pid

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.alive

    def stop(self) -> None:
        """Kill the worker."""
        if self.running:
            self.running.kill()
            self.running.log.unlink(missing_ok=True)


@contextmanager
def worker(
    name: str, place: Place, pool: str, *options: str, interpreter: str = sys.executable, **environ: str
) -> Iterator[Side]:
    """A side with a worker, for a test that may stop or change it. `environ` applies to its clients, too."""
    side = Side(name, place, environ, interpreter=interpreter)
    try:
        yield side.start(pool, *options)
    finally:
        side.stop()


@contextmanager
def workers(*sides: Side, pool: str = "threads", concurrency: str = "") -> Iterator[dict[str, Side]]:
    """Sides by name, each with a worker, all started at once. `concurrency`: as in `worker_argv`."""
    with ExitStack() as stack, ThreadPoolExecutor() as at_once:
        for side in sides:
            stack.callback(side.stop)
        list(at_once.map(lambda side: side.start(pool, concurrency=concurrency), sides))
        yield {side.name: side for side in sides}


def kits(sides: dict[str, Side]) -> dict[str, Side]:
    """Only the sides of the kit."""
    return {name: sides[name] for name in KIT}


def outcomes(sides: dict[str, Side], where: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """The result of a client of each side, all run at once."""
    with ThreadPoolExecutor() as at_once:
        given = {name: at_once.submit(side.client, where, *arguments, **options) for name, side in sides.items()}
    return {name: one.result() for name, one in given.items()}
