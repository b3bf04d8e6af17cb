"""Beat's timetable, and a scheduler that shows that beat lives."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery.beat import PersistentScheduler
from celery.schedules import crontab

if TYPE_CHECKING:
    from app.profile import Profile


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
    """Celery's own scheduler; each round touches HEARTBEAT_FILE, if that is set."""

    schedule_filename: str

    def setup_schedule(self) -> None:
        Path(self.schedule_filename).parent.mkdir(parents=True, exist_ok=True)
        super().setup_schedule()

    def tick(self, *args: Any, **kwargs: Any) -> Any:
        if file := os.environ.get("HEARTBEAT_FILE"):
            Path(file).touch()
        return super().tick(*args, **kwargs)
