"""This app's own settings, in Celery's own names: its servers, its tasks, its timetable.

`celery_kit/defaults.py` has the defaults of all other settings; settings in this file override them. The variables of the
environment are in `celery_kit/profile.py`. Celery imports this module when it first needs a setting.
"""

from pathlib import Path
from pkgutil import iter_modules

from app import schedule
from celery_kit.profile import Profile

# The underscore keeps it, and the passwords in its URLs, out of `celery inspect conf`.
_profile = Profile.from_environ()

broker_url = _profile.broker_url
result_backend = _profile.result_backend
# Every module in app/tasks/; new ones need no entry here.
imports = [f"app.tasks.{module.name}" for module in iter_modules([str(Path(__file__).parent / "tasks")])]

# One number bounds a task; the stack's stop grace period and the broker's redelivery follow from it.
task_time_limit = _profile.task_time_limit

timezone = _profile.timezone
enable_utc = True  # times in messages, whatever TIMEZONE

# The timetable is in app/schedule.py; beat stores the last run of each entry in the file.
beat_schedule = schedule.timetable(_profile)
beat_schedule_filename = str(_profile.data_dir / "celerybeat-schedule.json")
