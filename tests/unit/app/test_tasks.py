"""The sample tasks on real files, without a broker."""

import json
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from PIL import Image

from app.tasks import media, reports
from celery_kit.base.target import ROOT
from tests.wait import until


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("REPORT_MEGABYTES", "1")
    monkeypatch.setattr(reports, "_file", (-1, -1))
    reports._runs.cache_clear()
    yield tmp_path
    reports._lines.clear()
    reports._some.clear()


def test_a_thumbnail_keeps_the_pictures_shape(data: Path) -> None:
    Image.new("RGBA", (300, 900)).save(data / "tall.png")
    assert media.thumbnail("tall.png", 90) == {"path": "tall.90.jpg", "width": 30, "height": 90}


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd", "a/../../b"])
def test_no_path_leads_out_of_the_data_folder(path: str) -> None:
    with pytest.raises(ValueError, match="leads out of DATA_DIR"):
        media.thumbnail(path)


@pytest.mark.parametrize(("frames", "points", "peaks"), [(0, 4, 0), (1, 4, 1), (3, 4, 3), (1001, 4, 4), (8, 4, 4)])
def test_a_waveform_has_at_most_the_points_asked_for(data: Path, frames: int, points: int, peaks: int) -> None:
    with wave.open(str(data / "sound.wav"), "wb") as sound:
        sound.setnchannels(2)
        sound.setsampwidth(2)
        sound.setframerate(1_000)
        sound.writeframes(b"\x00\x80\x00\x00" * frames)  # the left channel at its lowest value
    measured = media.waveform("sound.wav", points)
    assert measured == {"duration": frames / 1_000, "peaks": [1.0] * peaks}


def test_statistics_count_the_last_day_only(data: Path) -> None:
    now = datetime.now(UTC)
    runs = [
        {"at": (now - timedelta(hours=hours)).timestamp(), "task": task, "id": "x", "state": state, "seconds": seconds}
        for hours, task, state, seconds in (
            (1, "a", "SUCCESS", 1.0),
            (2, "a", "FAILURE", 3.0),
            (23, "b", "SUCCESS", 0.5),
            (25, "a", "SUCCESS", 9.0),
        )
    ]
    folder = data / "runs"
    folder.mkdir()
    for run in runs:
        day = datetime.fromtimestamp(run["at"], UTC)  # type: ignore[arg-type]
        with open(folder / f"{day:%Y-%m-%d}.jsonl", "a") as file:
            file.write(json.dumps(run) + "\n")
    (folder / "2020-01-01.jsonl").write_text("old\n")
    report = reports.daily_statistics()
    assert report["tasks"]["a"] == {
        "runs": 2,
        "states": {"FAILURE": 1, "SUCCESS": 1},
        "median_seconds": 2.0,
        "longest_seconds": 3.0,
    }
    assert report["tasks"]["b"]["runs"] == 1
    assert json.loads((data / "reports" / f"{now:%Y-%m-%d}.json").read_text()) == report
    assert not (folder / "2020-01-01.jsonl").exists()


def test_the_notes_of_a_moment_are_one_write(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "_writer", lambda: None)  # nothing but their number has them written
    monkeypatch.setattr(os, "write", written := MagicMock(side_effect=os.write))
    for number in range(reports.LINES):
        assert not written.called
        reports._ended(reports.daily_statistics, f"id-{number}", "SUCCESS")
    assert written.call_count == 1
    assert reports.daily_statistics()["tasks"]["reports.daily_statistics"]["runs"] == reports.LINES


def test_a_note_that_no_other_follows_is_written(data: Path) -> None:
    reports._ended(reports.daily_statistics, "id", "SUCCESS")
    until("the note is there", lambda: any('"id": "id"' in path.read_text() for path in (data / "runs").glob("*.jsonl")))


def test_a_child_process_writes_its_own_notes_alone_and_all_of_them(data: Path) -> None:
    """It ends as a pool's child does: Python's own end of a process has no part in it."""
    reports._some.set()  # the parent's thread is about to write
    reports._lines.append((0, b"its parent's"))
    if not (child := os.fork()):
        reports._ended(reports.daily_statistics, "child", "SUCCESS")
        reports._write_last()
        os._exit(0)
    os.waitpid(child, 0)
    (note,) = (data / "runs" / f"{datetime.now(UTC):%Y-%m-%d}.jsonl").read_text().splitlines()
    assert '"id": "child"' in note


def test_without_being_asked_nothing_is_written_for_a_task(data: Path) -> None:
    """What costs every task something, on the disk too, is off until somebody wants it."""
    code = "from celery import signals; from app.tasks import reports; print(len(signals.task_postrun.receivers))"
    for given, receivers in (("0", "0"), ("1", "1")):
        environ = {**os.environ, "REPORT_MEGABYTES": given}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        assert done.stdout.strip() == receivers, done.stderr


def test_the_notes_of_a_day_take_no_more_than_they_may(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is written for every task has a limit; that it is reached is said once."""
    for number in range(10_000):
        reports._ended(reports.daily_statistics, f"id-{number}-{'x' * 200}", "SUCCESS")
    reports.write()
    (path,) = (data / "runs").glob("*.jsonl")
    assert 900_000 < path.stat().st_size <= 1_000_000
    assert [record.message for record in caplog.records].count(
        "no more of what tasks do is noted today: REPORT_MEGABYTES=1 are full"
    ) == 1


def test_one_days_file_is_open_at_a_time_and_old_ones_go_without_beat(data: Path) -> None:
    """What a process opens day by day it closes, and what it leaves on the disk is bounded whoever else runs."""
    (data / "runs").mkdir()
    (data / "runs/2020-01-01.jsonl").touch()
    numbers = [reports._of_day(20_000 + day) for day in range(5)]
    assert len(set(numbers)) <= 2
    assert not (data / "runs/2020-01-01.jsonl").exists()


def test_half_a_line_keeps_no_other_from_being_counted(data: Path) -> None:
    """Whatever stands in a file that was being written, the rest of it counts."""
    reports._ended(reports.daily_statistics, "id", "SUCCESS")
    reports.write()
    (path,) = (data / "runs").glob("*.jsonl")
    path.write_bytes(b'{"at": 1\n[]\n\xff\n' + path.read_bytes() + b'{"at": 17')
    assert reports.daily_statistics()["tasks"]["reports.daily_statistics"]["runs"] == 1
