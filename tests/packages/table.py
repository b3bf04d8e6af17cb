"""THE table of packages for Celery that people use: what each does on the kit. docs/packages.md is made from it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LOCK = Path(__file__).with_name("requirements.txt")


@dataclass(frozen=True)
class Row:
    """`runs`: what the test does with it. `note`: what is different, or what to know. `test`: in test_packages.py."""

    runs: str
    test: str
    outcome: Literal["works", "differently", "cannot"] = "works"
    note: str = ""


TABLE = {
    "sentry-sdk": Row(
        "errors with the task's name, one trace from producer to worker, monitors of beat's entries",
        "test_sentry",
    ),
    "opentelemetry-instrumentation-celery": Row(
        "the span of each run is the child of the span that sent it",
        "test_opentelemetry",
        note="the extra `tracing` of the kit sets it up: [docs/monitoring.md](monitoring.md)",
    ),
    "elastic-apm": Row("transactions and errors of tasks, one trace from producer to worker", "test_elastic_apm"),
    "celery-batches": Row(
        "batches that are full, and batches that are old; a result for each message",
        "test_celery_batches",
        note="its last release asks for Celery before 5.7; it needs a prefetch of `flush_every` or more, as its guide says",
    ),
    "celery-singleton": Row("a second call gives the first one's id; the lock is released", "test_celery_singleton"),
    "celery-once": Row("a second call is refused; the lock is released", "test_celery_once"),
    "django": Row("the fixup's `delay_on_commit`", "test_django_sends_on_commit"),
    "django-celery-results": Row("results and errors as rows of `TaskResult`", "test_django_celery_results"),
    "django-celery-beat": Row("an entry of the database is sent", "test_django_celery_beat"),
    "celery-redbeat": Row("an entry that a program writes into Redis is sent", "test_celery_redbeat"),
    "flower": Row("its metrics count the events of tasks", "test_flower", note="`MONITOR=1` starts it"),
    "celery-prometheus-exporter": Row("it counts tasks by state from their events", "test_celery_prometheus_exporter"),
}


def versions() -> dict[str, str]:
    """By package, the version that the tests run."""
    return dict(re.findall(r"^([\w.-]+)==(\S+)", LOCK.read_text(), re.MULTILINE))
