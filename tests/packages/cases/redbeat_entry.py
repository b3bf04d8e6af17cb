"""celery-redbeat: an entry that a program writes into Redis is sent by beat."""

import os
from typing import Any

from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry

from tests.compat.side import app
from tests.harness.waiting import until
from tests.packages.cases.tasks import KEY, NOTES, note

app.conf.redbeat_redis_url = os.environ["LOCKS"]
app.conf.redbeat_key_prefix = f"{os.environ['QUEUE']}:"


def written() -> Any:
    entry = RedBeatSchedulerEntry("often", note.name, schedule(1.0), args=["by redbeat"], app=app)
    entry.save()
    until("beat has sent it twice", lambda: NOTES.llen(KEY) >= 2, 40)
    kept = RedBeatSchedulerEntry.from_key(entry.key, app=app)
    entry.delete()
    return {"ran": NOTES.lindex(KEY, 0), "counted": kept.total_run_count >= 1}
