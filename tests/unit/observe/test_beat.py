"""What beat keeps of its timetable between two starts."""

import json
import os
import pickle
import shelve
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest
from celery.schedules import crontab
from kombu.utils.uuid import uuid

from celery_kit import Kit
from celery_kit.observe.beat import Scheduler, _JsonShelf
from tests.security.hostile import anything, flipped


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def scheduler(file: Path, **settings: Any) -> Any:
    """Beat's, as it begins."""
    app = Kit(uuid(), set_as_current=False, broker="memory://")
    entries = {"a": {"task": "some.task", "schedule": crontab(hour=4)}, "b": {"task": "some.task", "schedule": 60.0}}
    app.conf.update({"timezone": "Europe/Berlin", "beat_schedule": entries, "result_expires": None} | settings)
    return Scheduler(app=app, schedule_filename=str(file))


def test_the_last_runs_are_known_after_a_restart(file: Path) -> None:
    """What is kept on a disk is the same when it is read again, in the same zone."""
    one = scheduler(file)
    entry = one.reserve(one.schedule["a"])
    one.close()
    again = scheduler(file).schedule
    assert (again["a"].total_run_count, again["a"].last_run_at) == (1, entry.last_run_at)
    assert again["a"].last_run_at.tzinfo == entry.last_run_at.tzinfo
    assert again["b"].total_run_count == 0 and again["a"].schedule == crontab(hour=4)
    assert {path.name for path in file.parent.iterdir()} == {"kept"}


def test_an_entry_is_due_after_a_restart_as_it_was_before(file: Path) -> None:
    """A run that was missed while beat was away is made up for."""
    one = scheduler(file)
    one.schedule["b"].last_run_at -= timedelta(hours=1)
    one.close()
    assert scheduler(file).schedule["b"].is_due().is_due


def test_another_time_zone_begins_again(file: Path) -> None:
    """As in Celery's own: what was kept in one zone says nothing in another."""
    one = scheduler(file)
    one.reserve(one.schedule["a"])
    one.close()
    assert scheduler(file, timezone="Asia/Kathmandu").schedule["a"].total_run_count == 0


class Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_what_beat_finds_on_a_disk_runs_no_code(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that tasks, or others, can write is never unpickled: Celery's timetable is a shelf of pickles."""
    trace = tmp_path / "ran"
    with shelve.open(str(file)) as kept:
        kept["entries"] = {"a": Code(trace)}
        kept["tz"] = "Europe/Berlin"
    if not file.exists():  # its name is the database's affair
        file.write_bytes(pickle.dumps(Code(trace)))
    assert scheduler(file).schedule["a"].total_run_count == 0
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    ["", "no JSON", "[]", "{}", '{"entries": []}', '{"entries": {"a": {"last_run_at": 7}}}', '{"entries": {"a": 1}}', "["],
)
def test_whatever_the_file_holds_beat_starts(file: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """A file that cannot be read is a warning, in one line, and a new beginning."""
    file.write_text(text)
    one = scheduler(file)
    assert one.schedule["a"].total_run_count == 0
    assert not [record for record in caplog.records if record.exc_info]
    one.close()
    assert isinstance(scheduler(file).schedule["a"].last_run_at, datetime)


@pytest.mark.parametrize("kind", ["pipe", "huge"])
def test_what_is_no_timetable_is_not_read(file: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Tasks write to the same folder. A pipe would be waited for, and a huge file would fill the memory."""
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "huge":
        file.touch()
        os.truncate(file, 8 * 2**30)  # without a block on the disk
    assert scheduler(file).schedule["a"].total_run_count == 0
    assert "beat starts without its last runs" in caplog.text


def test_a_folder_in_place_of_the_file_is_refused(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line: beat could never store its runs."""
    file.mkdir()
    with pytest.raises(SystemExit):
        scheduler(file)
    assert "it is a folder" in capsys.readouterr().err


def test_a_run_in_the_future_does_not_hold_an_entry_up(file: Path) -> None:
    """The file may hold anything, and a clock may have been wrong: the entry would not be due for a thousand years."""
    one = scheduler(file)
    one.reserve(one.schedule["b"])
    one.schedule["b"].last_run_at += timedelta(days=365_000)
    one.close()
    ((_, seconds), runs) = scheduler(file).schedule["b"].is_due(), scheduler(file).schedule["b"].total_run_count
    assert runs == 1 and seconds <= 60


def test_whatever_its_file_holds_beat_reads_it(file: Path) -> None:
    """A thousand random changes of a file of its own."""
    random, one = Random(1), scheduler(file)
    one.reserve(one.schedule["a"])
    one.close()
    stored = json.loads(file.read_bytes())
    for number in range(1_000):
        changed = json.loads(json.dumps(stored))
        changed["entries"]["a"][random.choice(["last_run_at", "total_run_count", "x"])] = anything(random)
        if number % 3 == 0:
            changed[random.choice(list(changed))] = anything(random)
        text = json.dumps(changed).encode()
        file.write_bytes(flipped(random, text) if number % 2 else text)
        _JsonShelf(file, one._restored_entry)
        if number % 100 == 0:
            assert scheduler(file).schedule["b"].is_due()
