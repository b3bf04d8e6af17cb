"""Reports, which beat sends: see app/schedule.py."""

import json
import os
from datetime import UTC, datetime, timedelta

from celery import shared_task

from celery_kit.files import inside
from celery_kit.observe.runs import Statistics, statistics


@shared_task
def daily_statistics() -> Statistics:
    """Sum up the task runs of the last 24 hours, and write them to DATA_DIR/reports/<date>.json."""
    until = datetime.now(UTC)
    report = statistics(until - timedelta(days=1), until)
    target = inside(f"reports/{until:%Y-%m-%d}.json")
    draft = target.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(report, indent=2))
    draft.replace(target)  # in one step: nobody reads half a report
    return report
