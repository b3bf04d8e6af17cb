"""Worker processes of this machine: plain Celery's, and the kit's on either engine."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until

#: Celery without the kit.
PLAIN_CELERY = "celery"
#: Tasks at once that a pool's worker runs in tests.
CONCURRENCY = {name: min(pool.concurrency or 2, 20 if pool.sockets_patched else 4) for name, pool in POOLS.items()}


def kill(process: "subprocess.Popen[Any]") -> None:
    """Send SIGKILL to a process that leads a session, and to its children, and wait until it has exited."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()


class Process:
    """A process `python ARGV` in its own session, with a log. `environ`: in addition to this process' environment."""

    def __init__(
        self, argv: Sequence[str], log: Path, environ: Mapping[str, str], interpreter: str = sys.executable, cwd: Path = ROOT
    ) -> None:
        self.log = log
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [interpreter, *argv],
                cwd=cwd,
                env={**os.environ, **environ},
                stdout=output,
                stderr=output,
                start_new_session=True,  # prefork's children are killed with it
            )

    @property
    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to it and to its children."""
        kill(self.process)

    def stop(self, seconds: float = 60) -> int:
        """Shut it down warmly. Returns the exit code. On a timeout, kills it and raises TimeoutExpired."""
        self.process.terminate()
        try:
            return self.process.wait(timeout=seconds)
        finally:
            self.kill()

    def consumes(self) -> bool:
        """Whether this worker has logged that it consumes. Fails if it has exited instead."""
        said = self.said
        assert self.alive, f"the worker exited with {self.process.returncode}:\n{said}"
        return "ready." in said


def worker_argv(app: str, pool: str, queue: str, *options: str, concurrency: str = "") -> list[str]:
    """The arguments of `python` for a worker of an app on a queue, with a unique node name.

    `concurrency`: a number, `auto`, or `none` for a worker without the option; by default :data:`CONCURRENCY`.
    """
    argv = ["-m", "celery", "-A", app, "worker", "--pool", pool, "-Q", queue, "-n", f"{uuid4().hex[:6]}@test", "-l", "INFO"]
    size = [] if concurrency == "none" else ["-c", concurrency or str(CONCURRENCY[pool])]
    return [*argv, *size, *POOLS[pool].worker_flags, *options]


def wait_for_worker(process: Process) -> None:
    """Wait until a worker consumes."""
    until(f"the worker consumes; its log is {process.log}", process.consumes, 120)
