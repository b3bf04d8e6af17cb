"""A Celery app as its documentation begins one, with tasks of the names that the kit's sample app has."""

import os
from typing import Any

from celery import Celery

app = Celery("proj", broker=os.environ["BROKER_URL"], backend=os.environ["BACKEND_URL"])
app.conf.beat_schedule = {"every day": {"task": "reports.daily_statistics", "schedule": 86_400.0}}


@app.task(name="workflows.count")
def count(message_ids: list[str], picture: str) -> dict[str, Any]:
    return {"picture": picture, "sent": len(message_ids)}


@app.task(name="reports.daily_statistics")
def daily_statistics() -> None:
    """Nothing."""
