"""Beat's timetable."""

from typing import TypedDict

from celery.schedules import crontab

from celery_kit.profile import Profile


class Entry(TypedDict):
    """An entry of Celery's beat_schedule. `schedule`: a crontab, or seconds."""

    task: str
    schedule: crontab | float


def timetable(profile: Profile) -> dict[str, Entry]:
    """Celery's beat_schedule. Clock times are in the profile's time zone; REPORT_EVERY=seconds adds an entry to try it out."""
    entries: dict[str, Entry] = {
        "daily statistics": {"task": "reports.daily_statistics", "schedule": crontab(hour=4, minute=0)},
    }
    if profile.report_every:
        entries["daily statistics, for trying out"] = {
            "task": "reports.daily_statistics",
            "schedule": float(profile.report_every),
        }
    return entries
