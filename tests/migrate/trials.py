"""Moves with workers and producers that run: every task counts its runs, and each must have one."""

import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis

from celery_kit.base.messages import plain
from celery_kit.base.target import ROOT
from celery_kit.operate.look.dead import each
from tests.harness.waiting import settled, until
from tests.harness.workers import Process, wait_for_worker, worker_argv
from tests.migrate.ends import Place, letters, sign

QUEUE, TASK = "celery", "crash.short"
#: Seconds until the delayed tasks are due: they must still wait when they are moved.
DELAY = 90
#: How many tasks a second the producer sends, which goes over first.
RATE = 20
Figures = dict[str, Any]


@dataclass
class Load:
    """A producer that sends tasks to one place, and then to another one."""

    place: Place
    number: int
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send until it is ended."""
        app, at = self.place.app(), self.place
        while not self.ended.wait(1 / RATE):
            if at is not self.place:
                app, at = self.place.app(), self.place
            app.send_task(TASK, [self.number], queue=QUEUE, task_id=f"load-{self.number}")
            self.number += 1


class Trial:
    """A source with messages and a worker, and a target with a worker. `runs`: an empty Redis database, for its counts."""

    def __init__(self, source: Place, target: Place, runs: str, results: str, size: int) -> None:
        self.source, self.target, self.size = source, target, size
        self.runs: Any = Redis.from_url(runs)
        self.environ = {"RUNS": runs, "CELERY_RESULT_BACKEND": results}
        self.queued, self.others = 5_000 * size // 100, 100 * size // 100
        self.delayed = 500 * size // 100
        self.logs = Path(tempfile.mkdtemp(prefix="celery-kit-moves-"))
        self.workers: dict[str, Process] = {}

    def fill(self) -> None:
        """Send what is to be moved."""
        app = self.source.app()
        if self.source.management is None:
            sign(self.source)
        number = 0
        for kind in ("rejected", "failed"):
            number = letters(app, self.source, kind, self.others, TASK, number)
        for _ in range(self.queued):
            app.send_task(TASK, [number], queue=QUEUE, priority=(None, 3, 9)[number % 3])
            number += 1
        for _ in range(self.delayed):
            app.send_task(TASK, [number], queue=QUEUE, countdown=DELAY)
            number += 1
        self.sent = number

    def work(self, place: Place) -> None:
        """Start a worker at a place."""
        name = "source" if place is self.source else "target"
        environ = {**place.environ, **self.environ}
        argv = worker_argv("tests.crash.work", "threads", QUEUE, concurrency="2")
        self.workers[name] = Process(argv, self.logs / f"{name}-{time.time()}.log", environ)
        wait_for_worker(self.workers[name])

    def stop(self, place: Place) -> None:
        """Stop its worker, after its tasks."""
        if worker := self.workers.pop("source" if place is self.source else "target", None):
            worker.stop()

    def tool(self, source: Place, target: Place) -> "subprocess.Popen[str]":
        """Begin a move."""
        argv = [sys.executable, "-m", "celery_kit.operate.look.migrate", "--from", source.url, "--to", target.url]
        environ = {**source.environ, **target.environ}
        return subprocess.Popen(
            argv, cwd=ROOT, env={**_os(), **environ}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def killed(self, source: Place, target: Place, most: float) -> None:
        """Begin a move, and kill it at a random moment while it moves."""
        process = self.tool(source, target)
        assert process.stdout
        process.stdout.readline()  # what there is to move
        try:
            process.wait(random.uniform(0.1, most))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait()

    def whole(self, source: Place, target: Place) -> str:
        """Move all of it. Returns the last line but one, which says what was moved."""
        said, _ = (process := self.tool(source, target)).communicate(timeout=600)
        assert process.returncode == 0, said
        return plain(next(line for line in said.splitlines() if line.startswith("moved")))

    def counts(self) -> dict[str, int]:
        """How often each task has run."""
        return {name.decode(): int(number) for name, number in self.runs.hgetall("runs").items()}


def _os() -> dict[str, str]:
    import os

    return dict(os.environ)


@contextmanager
def load(trial: Trial) -> Iterator[Load]:
    """A producer that runs meanwhile."""
    one = Load(trial.source, trial.sent)
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        one.ended.set()
        thread.join()


def clean(trial: Trial, source: Place, target: Place) -> None:
    """It is not interrupted."""
    trial.whole(source, target)


def kills(trial: Trial, source: Place, target: Place) -> None:
    """It is killed five times at random, and run again."""
    for _ in range(5):
        trial.killed(source, target, 3)
    trial.whole(source, target)


def back(trial: Trial, source: Place, target: Place) -> None:
    """It is killed, everything goes back, where a worker runs again; then it goes over after all."""
    trial.killed(source, target, 3)
    trial.whole(source, target)
    trial.stop(target)
    trial.work(source)
    trial.whole(target, source)
    trial.work(target)
    trial.stop(source)
    trial.whole(source, target)


WAYS: dict[str, Callable[[Trial, Place, Place], None]] = {"clean": clean, "killed": kills, "rolled back": back}


def run(trial: Trial, way: str) -> Figures:
    """Do a move, and count. The producer goes over first, the old worker stops after its tasks, and the new one runs."""
    source, target = trial.source, trial.target
    trial.fill()
    trial.work(target)
    began = time.monotonic()
    with load(trial) as producer:
        trial.work(source)
        until("the old worker works", lambda: len(trial.counts()) > trial.queued // 100, 60)
        producer.place = target
        stopping = threading.Thread(target=trial.stop, args=(source,))
        stopping.start()
        WAYS[way](trial, source, target)
        stopping.join()
        trial.whole(source, target)  # what the old worker gave back
    figures: Figures = {"seconds": round(time.monotonic() - began), "while it moved": producer.number - trial.sent}
    return figures | outcome(trial, producer.number)


def outcome(trial: Trial, sent: int) -> Figures:
    """What became of the tasks, once all have run."""
    app, found = trial.target.app(), []
    each(app, lambda letter: found.append(letter) or "retry")  # type: ignore[func-returns-value]
    seen = settled(trial.counts, lambda seen: len(seen) >= sent, DELAY + 120, 0.5)
    runs = list(seen.values())
    for name in list(trial.workers):
        trial.workers.pop(name).stop()
    return {
        "tasks": sent,
        "dead": sum(letter.kind == "rejected" for letter in found),
        "failed": sum(letter.kind == "failed" for letter in found),
        "lost": sent - len(runs),
        "twice": sum(number > 1 for number in runs),
    }
