"""How beat ends."""

import os
import shelve
import signal

from tests.operator.conftest import Bench
from tests.wait import until


def test_stop_while_it_sends(bench: Bench) -> None:
    """A beat that is stopped in the middle of sending sends to the end, keeps its timetable, and exits with 0."""
    beat = bench.start("celery", "-A", "tests.operator.stopped_beat", "beat", REPORT_EVERY="1")
    assert beat.process.wait(30) == 0, beat.log.read_text()
    with shelve.open(str(bench.folder / "data" / "celerybeat-schedule"), "r") as kept:
        assert kept["entries"]["daily statistics, for trying out"].total_run_count == 1


def test_stop_while_the_broker_is_away(bench: Bench) -> None:
    """A beat that has no broker to send to ends within its grace."""
    beat = bench.start("celery", "-A", "app", "beat", "-l", "INFO", CELERY_BROKER_URL="redis://127.0.0.1:1/0", REPORT_EVERY="1")
    until("it tries", lambda: "beat: Connection error" in beat.log.read_text())
    os.kill(beat.process.pid, signal.SIGTERM)
    assert beat.process.wait(10) == 0, beat.log.read_text()
