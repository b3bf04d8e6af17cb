"""Tasks for the tests of time, and the timetable of the beat that some of them start."""

import os
import socket
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from celery import current_app, shared_task
from celery.exceptions import SoftTimeLimitExceeded
from celery.schedules import crontab


@shared_task
def ran_at() -> float:
    """Seconds since 1970."""
    return time.time()


def sleep(seconds: float) -> None:
    """In short steps: a call that waits cannot be cut short on every pool."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 0.1))


@shared_task
def nap(seconds: float) -> str:
    sleep(seconds)
    return "slept on"


@shared_task
def wait_for_a_byte(path: str) -> str:
    """One call that waits: for a byte from a Unix socket of the shared folder."""
    with socket.socket(socket.AF_UNIX) as one:
        one.connect(f"/data/{path}")
        return f"got {len(one.recv(1))}"


@shared_task
def nap_stubbornly(seconds: float) -> str:
    """Sleep, whatever its soft time limit."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with suppress(SoftTimeLimitExceeded):
            sleep(left)
    return "slept on"


@shared_task(soft_time_limit=2, time_limit=3)
def nap_stubbornly_with_a_limit(seconds: float) -> str:
    return str(nap_stubbornly(seconds))


@shared_task
def burn(seconds: float, file: str) -> str:
    """Work that never yields; leaves a file when it is done."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    (Path("/data") / file).touch()
    return "burnt"


@shared_task
def nap_with_care(seconds: float) -> str:
    try:
        sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "slept on"


@shared_task(soft_time_limit=2)
def nap_with_care_and_a_limit(seconds: float) -> str:
    try:
        sleep(seconds)
    except SoftTimeLimitExceeded:
        return "cleaned up"
    return "slept on"


@shared_task
def tick(name: str) -> None:
    """A line in the shared folder for each run."""
    with open(Path("/data") / f"ticks.{name}", "a") as file:
        file.write(f"{time.time()}\n")


def timetable(sender: Any, **_: Any) -> None:
    """What Celery's user guide has a module do that brings periodic tasks of its own."""
    sender.add_periodic_task(1.0, tick.s("interval"), name="interval")
    sender.add_periodic_task(1.0, tick.s("routed"), name="routed", queue="spare")
    now, missed = datetime.now(UTC), timedelta(minutes=2)
    here, elsewhere = (now - missed).astimezone(ZoneInfo(os.environ["TIMEZONE"])), now - missed
    for name, schedule, last in (
        ("hourly", timedelta(hours=1), timedelta(hours=2)),
        # Clock times of two minutes ago, last run ten minutes ago: beat sends what is read in its own zone, and only that.
        ("here", crontab(hour=here.hour, minute=here.minute), timedelta(minutes=10)),
        ("elsewhere", crontab(hour=elsewhere.hour, minute=elsewhere.minute), timedelta(minutes=10)),
    ):
        sender.conf.beat_schedule[name] = {
            "task": "time_probes.tick", "args": (name,), "schedule": schedule, "last_run_at": now - last,
        }  # fmt: skip


if "PROBE_TIMETABLE" in os.environ:
    current_app.on_after_finalize.connect(timetable)
