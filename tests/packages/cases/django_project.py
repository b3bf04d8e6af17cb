"""Django with its fixup, django-celery-results and django-celery-beat."""

import os
from typing import Any

import django

django.setup()

from django.db import transaction  # noqa: E402
from django_celery_beat.models import IntervalSchedule, PeriodicTask  # noqa: E402
from django_celery_results.models import TaskResult  # noqa: E402

from tests.compat.side import app  # noqa: E402
from tests.harness.waiting import until  # noqa: E402
from tests.packages.cases.tasks import KEY, NOTES, fails, note, works  # noqa: E402

if backend := os.environ.get("DJANGO_BACKEND"):
    app.conf.result_backend = backend
    app.conf.result_extended = True


def on_commit() -> Any:
    """A task that is sent within a transaction goes out when that is committed, and not where it is rolled back."""
    with transaction.atomic():
        note.delay_on_commit("rolled back")
        transaction.set_rollback(True)
    with transaction.atomic():
        note.delay_on_commit("committed")
        note.delay("at once").get(timeout=20)
    until("both have run", lambda: NOTES.llen(KEY) >= 2, 20)
    return NOTES.lrange(KEY, 0, -1)


def kept() -> Any:
    """What the rows of results say."""
    good, bad = works.delay("kept"), fails.delay("broken")
    facts: dict[str, Any] = {"value": good.get(timeout=20), "error": str(bad.get(timeout=20, propagate=False))}
    for name, result in (("good", good), ("bad", bad)):
        row = TaskResult.objects.get(task_id=result.id)
        facts[name] = [row.status, row.task_name, row.result, bool(row.worker), bool(row.traceback)]
    return facts


def scheduled() -> Any:
    """An entry that is written into the database is sent by beat."""
    every, _ = IntervalSchedule.objects.get_or_create(every=1, period=IntervalSchedule.SECONDS)
    PeriodicTask.objects.create(interval=every, name="often", task=works.name, args='["by beat"]')
    rows = TaskResult.objects.filter(task_name=works.name, status="SUCCESS", periodic_task_name="often")
    until("beat has sent it twice, and a worker has run it", lambda: rows.count() >= 2, 40)
    return {"value": rows[0].result}
