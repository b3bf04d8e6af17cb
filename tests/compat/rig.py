"""The three sides of a comparison on one server: a worker and clients of plain Celery, and of the kit on either engine."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.wait import until

#: Celery without the kit, and the kit's engines.
CELERY = "celery"
SIDES = (CELERY, "plain", "fast")
KIT = SIDES[1:]
#: Tasks at once that a pool's worker runs here.
CONCURRENCY = {name: min(pool.concurrency or 2, 20 if pool.sockets_patched else 4) for name, pool in POOLS.items()}
#: In seconds; a client that has not ended by then hangs.
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
    """One side on one place: a queue of its own, and what a process needs to take part."""

    name: str
    place: Place
    environ: dict[str, str] = field(default_factory=dict)
    queue: str = ""
    interpreter: str = sys.executable
    log: Path | None = None
    process: "subprocess.Popen[bytes] | None" = None

    def __post_init__(self) -> None:
        self.queue = self.queue or f"compat-{self.name}-{uuid4().hex[:8]}"

    def environment(self, **more: str) -> dict[str, str]:
        engine = {} if self.name == CELERY else {"ENGINE": self.name}
        servers = {"CELERY_BROKER_URL": self.place.broker, "CELERY_RESULT_BACKEND": self.place.results}
        return {**os.environ, **servers, **engine, "SIDE": self.name, "QUEUE": self.queue, **self.environ, **more}

    def python(self, *argv: str, **environ: str) -> "subprocess.Popen[str]":
        """A process of this side, whose output is read back."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [self.interpreter, *argv], cwd=ROOT, env=self.environment(**environ), stdout=pipe, stderr=pipe, text=True
        )

    def client(self, where: str, *arguments: Any, seconds: float = CLIENT_SECONDS, **environ: str) -> Any:
        """What a function `module:name` of tests/compat/cases gives in a process of its own; {"raised": …} for an error.

        A process that has no answer after `seconds` gives {"hangs": seconds}.
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

    def start(self, pool: str, *options: str, **environ: str) -> "Side":
        """Start a worker of this side, and wait until it consumes."""
        self.log = Path(tempfile.gettempdir()) / f"{self.queue}.log"
        argv = [self.interpreter, "-m", "celery", "-A", "tests.compat.side", "worker", "--pool", pool, "-Q", self.queue]
        argv += ["-n", f"{uuid4().hex[:6]}@compat", "-l", "INFO", "-c", str(CONCURRENCY[pool]), *POOLS[pool].worker_flags]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*argv, *options],
                cwd=ROOT,
                env=self.environment(POOL=pool, **environ),
                stdout=log,
                stderr=log,
                start_new_session=True,  # prefork's children die with it
            )
        until(f"{self.name}'s worker on {pool} consumes", self._consumes, 120)
        return self

    def _consumes(self) -> bool:
        assert self.log and self.process and self.process.poll() is None, self.said()
        return "ready." in self.said()

    def said(self) -> str:
        """The worker's log."""
        return self.log.read_text() if self.log else ""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        if self.log:
            self.log.unlink(missing_ok=True)


@contextmanager
def worker(
    name: str, place: Place, pool: str, *options: str, interpreter: str = sys.executable, **environ: str
) -> Iterator[Side]:
    """A side with a worker, for a test that may end or change it; `environ` is its clients' too."""
    side = Side(name, place, environ, interpreter=interpreter)
    try:
        yield side.start(pool, *options)
    finally:
        side.stop()
