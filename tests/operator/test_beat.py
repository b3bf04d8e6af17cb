"""How beat ends."""

import json
import os
import signal

from tests.operator.conftest import Bench
from tests.wait import until


def test_stop_while_it_sends(bench: Bench) -> None:
    """A beat that is stopped in the middle of sending sends to the end, keeps its timetable, and exits with 0."""
    beat = bench.start("celery", "-A", "tests.operator.stopped_beat", "beat", REPORT_EVERY="1")
    assert beat.process.wait(30) == 0, beat.log.read_text()
    kept = json.loads((bench.folder / "data" / "celerybeat-schedule.json").read_text())
    assert kept["entries"]["daily statistics, for trying out"]["total_run_count"] == 1


def test_stop_while_the_broker_is_away(bench: Bench) -> None:
    """A beat that has no broker to send to ends within its grace."""
    beat = bench.start("celery", "-A", "app", "beat", "-l", "INFO", CELERY_BROKER_URL="redis://127.0.0.1:1/0", REPORT_EVERY="1")
    until("it tries", lambda: "beat: Connection error" in beat.log.read_text())
    os.kill(beat.process.pid, signal.SIGTERM)
    assert beat.process.wait(10) == 0, beat.log.read_text()


def test_sign_of_life_that_cannot_be_left(bench: Bench) -> None:
    """A beat that cannot write its heartbeat - a full disk - says so and goes on sending."""
    beat = bench.start("celery", "-A", "app", "beat", "-l", "INFO", HEARTBEAT_FILE="/proc/none/beat", REPORT_EVERY="1")
    until("it sends again and again", lambda: beat.log.read_text().count("Sending due task") > 2)
    assert "no sign of life can be left in /proc/none/beat" in beat.log.read_text()
