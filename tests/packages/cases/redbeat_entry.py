"""celery-redbeat: an entry that a program writes into Redis is sent by beat."""

import os
from typing import Any

from celery.schedules import schedule
from redbeat import RedBeatSchedulerEntry
from redis import Redis

from tests.compat.side import app
from tests.harness.waiting import until

NOTES = Redis.from_url(os.environ["LOCKS"], decode_responses=True)
KEY = f"{os.environ['QUEUE']}:ran"
app.conf.redbeat_redis_url = os.environ["LOCKS"]
app.conf.redbeat_key_prefix = f"{os.environ['QUEUE']}:"


@app.task(name="packages.note")
def note(word: str) -> None:
    NOTES.rpush(KEY, word)


def written() -> Any:
    entry = RedBeatSchedulerEntry("often", "packages.note", schedule(1.0), args=["by redbeat"], app=app)
    entry.save()
    until("beat has sent it twice", lambda: NOTES.llen(KEY) >= 2, 40)
    kept = RedBeatSchedulerEntry.from_key(entry.key, app=app)
    entry.delete()
    return {"ran": NOTES.lindex(KEY, 0), "counted": kept.total_run_count >= 1}
