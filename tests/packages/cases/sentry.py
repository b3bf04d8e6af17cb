"""sentry-sdk, set up beside the tasks; what it sends goes to COLLECTOR."""

import os
from typing import Any

import sentry_sdk
from celery.schedules import schedule
from sentry_sdk.integrations.celery import CeleryIntegration

from tests.compat.side import app
from tests.packages.cases.tasks import send_each_way, works

sentry_sdk.init(
    dsn=f"http://key@{os.environ['COLLECTOR']}/1",
    traces_sample_rate=1.0,
    integrations=[CeleryIntegration(monitor_beat_tasks=True)],
)


class AtOnce(schedule):
    """Due when beat starts; Sentry has no monitors of less than a minute."""

    def is_due(self, last_run_at: Any) -> Any:
        return True, 60


app.conf.beat_schedule = {"often": {"task": works.name, "schedule": AtOnce(60.0), "args": ("beat",)}}


def sent() -> Any:
    """Tasks within a transaction, each way that they can be sent; gives the transaction's trace."""
    with sentry_sdk.start_transaction(op="test", name="producer") as transaction:
        send_each_way()
    sentry_sdk.flush(10)
    return transaction.trace_id
