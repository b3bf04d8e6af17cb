"""What a broker, a result backend or a pool cannot do, or does differently: the rows of the capability tables.

A feature has the name of its test in the support matrix (`tests/integration/`): `soft_time_limit` is `test_soft_time_limit`.
A feature without a row works as Celery documents it. The matrix, the docs and the refusals at start read these rows, and a test
asserts what each row says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from celery_kit.base.versions import unmet


@dataclass(frozen=True)
class Limit:
    """One row. `what`: what happens instead, in a sentence. `reference`: where that is documented, or which test shows it."""

    kind: Literal["cannot", "differently"]
    what: str
    reference: str


#: Celery's documentation, for references.
DOCS = "https://docs.celeryq.dev/en/v5.7.0"

#: By feature.
Limits = Mapping[str, Limit]


@dataclass(frozen=True)
class Earlier:
    """What earlier versions of Celery cannot do, or do differently. `needs`: these versions."""

    feature: str
    needs: Mapping[str, str]
    limit: Limit


#: On every broker, result backend and pool.
EARLIER = (
    Earlier(
        "result_is_ignored",
        {"celery": ">=5.6,<5.7"},
        Limit(
            "differently",
            "a task's own ignore_result does not hold where it is sent by its name: its result is stored",
            "celery/app/base.py 5.6.3, send_task: it sends ignore_result=False where nothing is said",
        ),
    ),
    Earlier(
        "result_is_ignored",
        {"celery": "<5.6"},
        Limit(
            "differently",
            "a call with ignore_result stays STARTED: only its result is not stored",
            "celery/app/trace.py 5.5.3, build_tracer: track_started asks the task alone",
        ),
    ),
    Earlier(
        "reject",
        {"celery": "<5.7"},
        Limit(
            "differently",
            "the task stays STARTED (by rpc, PENDING), and whoever waits for its result waits in vain",
            "https://github.com/celery/celery/issues/4222",
        ),
    ),
    Earlier(
        "result_compression",
        {"celery": "<5.7"},
        Limit("cannot", "results go uncompressed", "celery/backends/base.py 5.7.0: its supports_result_compression is new"),
    ),
    Earlier(
        "beat_crontab_is_in_its_time_zone",
        {"celery": "<5.7"},
        Limit(
            "differently",
            "an entry whose last_run_at is in another zone than beat's, such as UTC, is read in that zone, and sent hours late",
            "celery/schedules.py 5.6.3, crontab.remaining_delta",
        ),
    ),
)


def earlier(rows: Iterable[Earlier]) -> Limits:
    """By feature, those of the rows that the installed versions meet."""
    return {row.feature: row.limit for row in rows if not unmet(row.needs)}
