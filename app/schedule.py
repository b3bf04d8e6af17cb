"""Beat's timetable, and a scheduler that shows that beat lives."""

import json
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.beat import PersistentScheduler
from celery.schedules import crontab

from app import health
from app.refusal import refuse, why_not_writable

if TYPE_CHECKING:
    from app.profile import Profile


#: What the file with the timetable is called: HEARTBEAT_FILE and this.
TIMETABLE = ".timetable"


def timetable(profile: "Profile") -> dict[str, dict[str, Any]]:
    """Celery's beat_schedule. Clock times are in the profile's time zone; REPORT_EVERY=seconds adds an entry to try it out."""
    entries: dict[str, dict[str, Any]] = {
        "daily statistics": {"task": "reports.daily_statistics", "schedule": crontab(hour=4, minute=0)},
    }
    if profile.report_every:
        entries["daily statistics, for trying out"] = {
            "task": "reports.daily_statistics",
            "schedule": float(profile.report_every),
        }
    return entries


class Scheduler(PersistentScheduler):
    """Celery's own scheduler; each round writes HEARTBEAT_FILE, if that is set, and what ran and is next beside it."""

    schedule_filename: str

    def setup_schedule(self) -> None:
        file = Path(self.schedule_filename)
        with suppress(OSError):  # why, is asked next
            file.parent.mkdir(parents=True, exist_ok=True)
        if why := why_not_writable(file):  # Celery would take its file for a broken one, and delete it
            instead = "name a folder that can be written in DATA_DIR=, or a file in it by `celery beat --schedule`"
            refuse(f"the timetable cannot be kept in {file}: {why}; {instead}")
        super().setup_schedule()

    def timetable(self) -> dict[str, Any]:
        """By entry: when it last ran (ISO 8601; None: not yet), when it is due next, how often it ran."""
        told = {}
        for name, entry in self.schedule.items():
            ran = entry.last_run_at if entry.total_run_count else None
            due = entry.default_now() + timedelta(seconds=entry.is_due()[1])
            told[name] = {"last": ran and ran.isoformat(), "next": due.isoformat(), "runs": entry.total_run_count}
        return told

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        waits = super().tick(*args, **kwargs)
        if file := os.environ.get("HEARTBEAT_FILE"):
            health.put(Path(f"{file}{TIMETABLE}"), json.dumps(self.timetable()))
            health.write(Path(file), health.now() + health.heartbeat_seconds())
        return waits
