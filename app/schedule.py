"""Beat's timetable."""

from typing import Any

from celery.schedules import crontab

from celery_kit.profile import Profile


def timetable(profile: Profile) -> dict[str, dict[str, Any]]:
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
