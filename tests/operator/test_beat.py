"""How beat exits: fix beat_stop."""

import json
import os
import signal

from tests.harness.waiting import until
from tests.operator.conftest import Machine

BEAT = ("celery", "-A", "app", "beat", "-l", "INFO")


def test_stop_while_it_sends(machine: Machine) -> None:
    """A beat that is stopped while it sends finishes sending, saves its timetable, and exits with 0."""
    beat = machine.start("celery", "-A", "tests.operator.stopped_beat", "beat", REPORT_EVERY="1")
    assert beat.process.wait(30) == 0, beat.said
    kept = json.loads((machine.folder / "data" / "celerybeat-schedule.json").read_text())
    assert kept["entries"]["daily statistics, for trying out"]["total_run_count"] == 1


def test_stop_while_the_broker_is_away(machine: Machine) -> None:
    """A beat without an available broker exits within its grace."""
    beat = machine.start(*BEAT, CELERY_BROKER_URL="redis://127.0.0.1:1/0", REPORT_EVERY="1")
    until("it tries", lambda: "beat: Connection error" in beat.said)
    os.kill(beat.process.pid, signal.SIGTERM)
    assert beat.process.wait(10) == 0, beat.said


def test_sign_of_life_that_cannot_be_left(machine: Machine) -> None:
    """A beat that cannot write its heartbeat, because the disk is full, logs that and goes on sending."""
    beat = machine.start(*BEAT, HEARTBEAT_FILE="/proc/none/beat", REPORT_EVERY="1")
    until("it sends again and again", lambda: beat.said.count("Sending due task") > 2)
    assert "no heartbeat can be written to /proc/none/beat" in beat.said
