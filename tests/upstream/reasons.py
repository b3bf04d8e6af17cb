"""THE table of reasons: why a test of Celery's own suite ends otherwise with the kit's app than with Celery's."""

from typing import NamedTuple

KIT = ("fast", "plain")


class Reason(NamedTuple):
    """`tests`: a pattern of their names, without `t.integration.`. `sides`: where they end otherwise."""

    tests: str
    why: str
    sides: tuple[str, ...] = KIT


REASONS = (
    Reason(
        r"^test_inspect\.test_Inspect\.test_(active|query_task)$",
        "`task_acks_late` is on: a task that runs is not acknowledged yet, and the test wants `acknowledged: True`.",
    ),
    Reason(
        r"^test_tasks\..*test_request_time_limits_none_when_not_configured$",
        "`task_time_limit` is set: every task of the kit has a time limit, and the test wants none.",
    ),
)
