"""Runs that are written down, on real files."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import MagicMock

import pytest

import app.tasks.reports  # noqa: F401  # for its task
from app import app as the_app
from celery_kit.base.target import ROOT
from celery_kit.observe import runs
from tests.harness.waiting import until

#: Of this app, also where another test has made its own one the current one.
daily_statistics = the_app.tasks["reports.daily_statistics"]


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("REPORT_MEGABYTES", "1")
    monkeypatch.setattr(runs, "_file", (-1, -1))
    runs._runs.cache_clear()
    yield tmp_path
    runs._lines.clear()
    runs._some.clear()


def last_day() -> dict[str, runs.Summary]:
    now = datetime.now(UTC)
    return runs.statistics(now - timedelta(days=1), now)["tasks"]


def test_the_lines_of_a_moment_are_one_write(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_writer", lambda: None)  # nothing but their number has them written
    monkeypatch.setattr(os, "write", written := MagicMock(side_effect=os.write))
    for number in range(runs.LINES):
        assert not written.called
        runs._ended(daily_statistics, f"id-{number}", "SUCCESS")
    assert written.call_count == 1
    assert last_day()["reports.daily_statistics"]["runs"] == runs.LINES


def test_a_line_that_no_other_follows_is_written(data: Path) -> None:
    runs._ended(daily_statistics, "id", "SUCCESS")
    until("the line is there", lambda: any('"id": "id"' in path.read_text() for path in (data / "runs").glob("*.jsonl")))


def test_a_child_process_writes_its_own_lines_alone_and_all_of_them(data: Path) -> None:
    """It ends as a pool's child does: Python's own end of a process has no part in it."""
    runs._some.set()  # the parent's thread is about to write
    runs._lines.append((0, b"its parent's"))
    if not (child := os.fork()):
        runs._ended(daily_statistics, "child", "SUCCESS")
        runs._write_last()
        os._exit(0)
    os.waitpid(child, 0)
    (line,) = (data / "runs" / f"{datetime.now(UTC):%Y-%m-%d}.jsonl").read_text().splitlines()
    assert '"id": "child"' in line


def test_without_being_asked_nothing_is_written_for_a_task(data: Path) -> None:
    """What costs every task something, on the disk too, is off until somebody wants it."""
    code = "from celery import signals; import app; print(len(signals.task_postrun.receivers))"
    for given, receivers in (("0", "0"), ("1", "1")):
        environ = {**os.environ, "REPORT_MEGABYTES": given}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == receivers, done.stderr


def test_the_lines_of_a_day_take_no_more_than_they_may(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is written for every task has a limit; that it is reached is said once."""
    for number in range(10_000):
        runs._ended(daily_statistics, f"id-{number}-{'x' * 200}", "SUCCESS")
    runs.write()
    (path,) = (data / "runs").glob("*.jsonl")
    assert 900_000 < path.stat().st_size <= 1_000_000
    assert [record.message for record in caplog.records].count(
        "no more runs are recorded today: REPORT_MEGABYTES=1 are full"
    ) == 1


def test_one_days_file_is_open_at_a_time_and_old_ones_go_without_beat(data: Path) -> None:
    """What a process opens day by day it closes, and what it leaves on the disk is bounded whoever else runs."""
    (data / "runs").mkdir()
    (data / "runs/2020-01-01.jsonl").touch()
    numbers = [runs._of_day(20_000 + day) for day in range(5)]
    assert len(set(numbers)) <= 2
    assert not (data / "runs/2020-01-01.jsonl").exists()


def test_half_a_line_keeps_no_other_from_being_counted(data: Path) -> None:
    """Whatever stands in a file that was being written, the rest of it counts."""
    runs._ended(daily_statistics, "id", "SUCCESS")
    runs.write()
    (path,) = (data / "runs").glob("*.jsonl")
    path.write_bytes(b'{"at": 1\n[]\n\xff\n' + path.read_bytes() + b'{"at": 17')
    assert last_day()["reports.daily_statistics"]["runs"] == 1


def test_a_line_that_is_none_of_ours_hides_no_other(data: Path) -> None:
    """Tasks write to the same folder: lines of other shapes, and a pipe that nobody writes to."""
    runs._ended(daily_statistics, "id", "SUCCESS")
    runs.write()
    (file,) = (data / "runs").glob("*.jsonl")
    at = datetime.now(UTC).timestamp()
    odd = ("[" * 100_000, "5", "null", f'{{"at": {at}, "task": [], "state": 1, "seconds": "x"}}',
           f'{{"at": {at}, "task": "a", "state": [], "seconds": 1}}', '{"at": "x", "task": "a"}')  # fmt: skip
    file.write_text("\n".join([*odd, file.read_text()]))
    os.mkfifo(file.with_name("9999-01-01.jsonl"))
    found = last_day()
    assert found["reports.daily_statistics"]["runs"] == 1 and found["a"]["states"] == {"[]": 1}
