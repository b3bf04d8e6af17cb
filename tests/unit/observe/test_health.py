"""The probe, on what a worker leaves for it: a process that runs, stops or is gone, and a time that has come or not."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.base.target import ROOT
from celery_kit.observe import health
from tests.harness.waiting import until


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    one = subprocess.Popen(["sleep", "600"])
    yield one
    one.kill()
    one.wait()


def probe(file: Path, *words: str) -> bool:
    """The exit code of the probe, which has no PATH: it starts no other program."""
    environ = {"HEARTBEAT_FILE": str(file), "PATH": ""}
    return subprocess.run(["/bin/sh", str(ROOT / "deploy/healthy.sh"), *words], env=environ, check=False).returncode == 0


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[0]


def test_healthy_until_the_time_that_the_loop_wrote(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    file = tmp_path / "heartbeat"
    for ahead, healthy in ((30, True), (-1, False)):
        file.write_text(f"{process.pid} {health.now() + ahead}\n")
        assert (probe(file), probe(file, "live")) == (healthy, healthy)


def test_a_stopped_process_is_not_healthy_whatever_it_wrote(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    file = tmp_path / "heartbeat"
    file.write_text(f"{process.pid} {health.now() + 3_600}\n")
    assert probe(file) and probe(file, "live")
    process.send_signal(signal.SIGSTOP)
    until("it stopped", lambda: state(process.pid) == "T", 10)
    assert not probe(file) and not probe(file, "live")


def test_a_worker_without_its_broker_is_alive_and_not_ready(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    file = tmp_path / "heartbeat"
    assert not probe(file) and not probe(file, "live")
    (tmp_path / "heartbeat.alive").write_text(f"{process.pid}\n")
    assert not probe(file) and probe(file, "live")
    process.kill()
    process.wait()
    assert not probe(file, "live")


def test_the_file_is_written_in_one_piece(tmp_path: Path) -> None:
    """A reader never sees half of it: another process writes it without a pause."""
    file = tmp_path / "heartbeat"
    health.write(file, 1)
    code = """
import sys
from pathlib import Path
from celery_kit.observe import health
while True:
    health.write(Path(sys.argv[1]), 123456)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(file)], cwd=ROOT) as writer:
        try:
            until("it writes", lambda: file.read_text() == f"{writer.pid} 123456\n", 30)
            assert {file.read_text() for _ in range(2_000)} == {f"{writer.pid} 123456\n"}
        finally:
            writer.kill()


class Clock:
    """The machine's clock, moved by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 1_000.0
        monkeypatch.setattr(health, "now", lambda: int(self.seconds))
        monkeypatch.setattr("celery_kit.observe.health.time.monotonic", lambda: self.seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def heartbeat(tmp_path: Path) -> Any:
    one: Any = health.Heartbeat.__new__(health.Heartbeat)
    one.file, one.seconds, one.timer = tmp_path / "heartbeat", 30, object()
    one.until = one.written = 0
    return one


def limited(seconds: int) -> Any:
    return SimpleNamespace(time_limit=5, request=SimpleNamespace(time_limit=seconds))


def said(heartbeat: Any) -> int:
    return int(heartbeat.file.read_text().split()[1])


def test_a_task_is_waited_for_as_long_as_its_own_message_allows(clock: Clock, heartbeat: Any) -> None:
    """A moment that depends on a task is worked out from that run, not from what all have in common."""
    heartbeat._begins(limited(1_000))
    assert said(heartbeat) == 1_000 + 1_000 + 30


def test_many_tasks_a_second_write_the_file_a_few_times(clock: Clock, heartbeat: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    monkeypatch.setattr(health, "put", lambda _, text: writes.append(text))
    for number in range(10_000):  # in ten seconds
        heartbeat._begins(limited(10 if number % 2 else 20))
        clock.seconds += 0.001
    assert 10 <= len(writes) <= 10 * (1 + 2 / health.LEAST)


def test_a_longer_task_counts_at_once_and_a_shorter_one_soon(clock: Clock, heartbeat: Any) -> None:
    """A worker must not look stuck during a task. That it looks healthy for too long is allowed for half a second."""
    heartbeat._begins(limited(10))
    heartbeat._begins(limited(100))
    assert said(heartbeat) == 1_000 + 100 + 30
    heartbeat._begins(limited(10))
    assert said(heartbeat) == 1_000 + 100 + 30
    clock.seconds += health.LEAST
    heartbeat._begins(limited(10))
    assert said(heartbeat) == 1_000 + 10 + 30
