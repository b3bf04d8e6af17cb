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
        r"^test_inspect\.test_Inspect\.test_active_queues$",
        "On RabbitMQ a queue is a quorum queue on a topic exchange, with dead-letter arguments; the test wants a classic one.",
    ),
    Reason(
        r"^test_inspect\.test_Inspect\.test_scheduled$",
        "On RabbitMQ the broker itself delays a task with an ETA: no worker holds it, and the list is empty.",
    ),
    Reason(
        r"^test_canvas\..*test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure",
        "It ends either way on plain Celery, from run to run; the report before this one had it the other way round.",
    ),
    Reason(
        r"^test_inspect\.test_Inspect\.test_(active|query_task)$",
        "`task_acks_late` is on: a task that runs is not acknowledged yet, and the test wants `acknowledged: True`.",
    ),
    Reason(
        r"^test_tasks\..*test_request_time_limits_none_when_not_configured$",
        "`task_time_limit` is set: every task of the kit has a time limit, and the test wants none.",
    ),
    Reason(
        r"^test_tasks\..*test_pool_timeout_none_blocks_successfully$",
        "`broker_pool_acquire_timeout` is set, so that no producer waits without end; the test wants that it is not.",
    ),
    Reason(
        r"^test_tasks\..*test_asyncresult_(forget|get)_cancels_subscription$",
        "A producer subscribes to a result when it waits for it, not when it sends the task: the test looks for the channel "
        "before that.",
    ),
    Reason(
        r"^test_redis_backend\.test_pubsub_(subscribe_churn_while_draining|reentrant_cancel_from_finalizer)$",
        "What a producer no longer listens to is said to the server with its next subscription, or when there are 100 of them: "
        "the test wants each said at once.",
    ),
)
