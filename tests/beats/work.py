"""`celery -A tests.beats.work`: a timetable whose tasks note when they ran, a line each in the file NOTES."""

import os
import time

from celery import Celery
from celery.schedules import crontab

from celery_kit import install

#: Entries that are due at each full minute, and the seconds of those that are due at an interval.
MINUTELY, INTERVALS = 5, (16, 17, 18, 19, 20, 21, 22)

app = Celery("beats")
install(app)
app.conf.task_default_queue = "beats"
ENTRIES = {f"minute {n}": crontab() for n in range(MINUTELY)} | {f"every {seconds}": float(seconds) for seconds in INTERVALS}
app.conf.beat_schedule = {
    name: {"task": "beats.note", "schedule": schedule, "args": [name]} for name, schedule in ENTRIES.items()
}
app.conf.beat_schedule_filename = os.environ.get("SCHEDULE", "celerybeat-schedule.json")


@app.task(name="beats.note", ignore_result=True)
def note(name: str) -> None:
    """Note a run of an entry."""
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{name}\t{time.time()}\t{note.request.id}\n")
