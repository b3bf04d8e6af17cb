"""This app's own settings, in Celery's own names: where its servers are, its tasks, its timetable.

All else that it has is in `celery_kit/defaults.py`; what is named here wins. What the user can choose stands in
`celery_kit/profile.py`. Not read before Celery needs a setting.
"""

from pathlib import Path
from pkgutil import iter_modules

from app import schedule
from celery_kit.profile import Profile

# The underscore keeps it, and the passwords in its URLs, out of `celery inspect conf`.
_profile = Profile.from_environ()

broker_url = _profile.broker_url
result_backend = _profile.result_backend
# A task is a function in a module of app/tasks/, and nothing else has to be told.
imports = [f"app.tasks.{module.name}" for module in iter_modules([str(Path(__file__).parent / "tasks")])]

# One number bounds a task; the stack's stop grace period and the broker's redelivery follow from it.
task_time_limit = _profile.task_time_limit

timezone = _profile.timezone
enable_utc = True  # times in messages, whatever TIMEZONE

# app/schedule.py: its timetable, and where beat keeps when each entry ran.
beat_schedule = schedule.timetable(_profile)
beat_schedule_filename = str(_profile.data_dir / "celerybeat-schedule.json")
