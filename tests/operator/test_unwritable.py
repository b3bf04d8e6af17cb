"""A worker or beat that cannot write a file at its start: it goes on, or exits with one line on the path and the setting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until
from tests.operator.conftest import Machine, Process

#: A folder that nobody can create, not even root, and a folder that is a file.
NOWHERE = "/proc/none"


def refusal(machine: Machine, *argv: str, **environ: str) -> str:
    """The last line of a process that does not start. It has no traceback."""
    environ = {**os.environ, **machine.environ, "LOG_FORMAT": "text", **environ}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    return done.stderr.splitlines()[-1]


def ready(worker: Process) -> bool:
    assert worker.process.poll() is None, worker.said
    return " ready." in worker.said


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_whose_heartbeat_cannot_be_written_works_and_reports_that_it_is_unhealthy(machine: Machine, pool: str) -> None:
    """The file is only for the probe. The worker logs one line, not one every two seconds, and exits cleanly."""
    worker = machine.start(
        "celery",
        "-A",
        "app",
        "worker",
        "-P",
        pool,
        "-l",
        "INFO",
        "-c",
        "1",
        HEARTBEAT_FILE=f"{NOWHERE}/beat",
        LOG_FORMAT="json",
    )
    until("it is ready", lambda: [line for line in worker.lines() if line["message"].endswith(" ready.")])
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    (line,) = (line["message"] for line in worker.lines() if "no heartbeat can be written" in line["message"])
    assert "/proc/none/beat" in line and "unhealthy" in line and "HEARTBEAT_FILE" in line
    assert "Traceback" not in worker.said


def test_prefork_without_a_folder_for_temporary_files_says_what_it_needs(machine: Machine) -> None:
    line = refusal(machine, "-m", "tests.operator.no_temporary", "-A", "app", "worker", "-P", "prefork")
    assert "pool prefork needs a folder for temporary files" in line and "TMPDIR" in line and "tmpfs" in line


@pytest.mark.parametrize("pool", [name for name, pool in POOLS.items() if not pool.has_children])
def test_the_other_pools_need_no_folder_for_temporary_files(machine: Machine, pool: str) -> None:
    worker = machine.start("tests.operator.no_temporary", "-A", "app", "worker", "-P", pool, "-l", "INFO", LOG_FORMAT="text")
    until("it is ready", lambda: ready(worker))
    assert "Traceback" not in worker.said


@pytest.mark.parametrize("blocked", [NOWHERE, "file"])
def test_beat_whose_timetable_cannot_be_kept_says_so(machine: Machine, tmp_path: Path, blocked: str) -> None:
    """Without the timetable, it would forget past runs, and send tasks again or not at all."""
    if blocked == "file":
        (tmp_path / "file").touch()
        blocked = str(tmp_path / "file")
    line = refusal(machine, "-m", "celery", "-A", "app", "beat", DATA_DIR=blocked)
    assert f"the timetable cannot be stored in {blocked}/celerybeat-schedule" in line
    assert "DATA_DIR" in line and "--schedule" in line


@pytest.mark.parametrize(
    ("command", "option"), [("worker", "--pidfile"), ("worker", "--statedb"), ("worker", "--logfile"), ("beat", "--logfile")]
)
def test_a_file_that_celerys_options_name_is_refused_in_one_line(machine: Machine, command: str, option: str) -> None:
    pool = ["-P", "solo"] if command == "worker" else []
    line = refusal(machine, "-m", "celery", "-A", "app", command, *pool, option, f"{NOWHERE}/file")
    assert line.endswith(f"celery-kit: {option} {NOWHERE}/file cannot be written: No such file or directory")
