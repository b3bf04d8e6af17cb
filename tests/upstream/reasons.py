"""THE table of reasons: why a test of Celery's own suite ends otherwise with the kit's app than with Celery's."""

from typing import NamedTuple

KIT = ("fast", "plain")


class Reason(NamedTuple):
    """`tests`, `where`: patterns, of a name without `t.integration.` and of "pair worker". `sides`: whose outcome it is."""

    tests: str
    why: str
    where: str = ""
    sides: tuple[str, ...] = KIT


RABBITMQ, IN_PROCESS = "^rabbitmq", "(prefork|solo)$"
REASONS = (
    Reason(
        r"^test_canvas\..*test_mutable_errback_called_by_chord_from_group_fail_multiple_on_body_failure",
        "It ends either way on both sides, from run to run: the test looks at the errbacks that other processes have called "
        "without waiting for them.",
    ),
    Reason(
        r"^test_canvas\.test_chord\.test_(large_header|chain_to_a_chord_with_large_header)$",
        "A chord of 1,000 tasks has to be done within 60 s: on a busy machine either side is late.",
    ),
    Reason(
        r"^test_canvas\.test_chord\.test_chord_on_error$",
        "`task_track_started` is on: a task that has started has a result already, where its process runs; the test waits for "
        "any result, and takes that one for the task's value.",
    ),
    Reason(
        r"^test_inspect\.test_Inspect\.test_(active|query_task)$",
        "`task_acks_late` is on: a task that runs is not acknowledged yet, and the test wants `acknowledged: True`.",
    ),
    Reason(
        r"^test_tasks\.test_tasks\.test_retry(_with_unpickleable_exception)?$",
        "`task_track_started` is on: the first state that a producer sees may be STARTED, and the test wants RETRY.",
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
    Reason(
        r"^test_inspect\.test_Inspect\.test_active_queues$",
        "On RabbitMQ the kit's queue is a quorum queue on a topic exchange; the test wants a classic one on a direct exchange.",
        where=RABBITMQ,
    ),
    Reason(
        r"^test_inspect\.test_Inspect\.test_scheduled$",
        "On RabbitMQ a task with an ETA waits in the broker: no worker has it, as the test wants.",
        where=RABBITMQ,
    ),
    Reason(
        r"^test_worker\.test_concurrency_auto_sizes_prefork_pool$",
        "The test starts a worker of plain Celery on the virtual host where the kit's queues are, and RabbitMQ refuses its "
        'declarations (docs/migration.md, "A place of its own").',
        where=RABBITMQ,
    ),
    Reason(
        r"^test_tasks\..*test_(retry_preserves_ignore_result_|send_task_without_ignore_result_)",
        "The fast path keeps Celery's own set of ended tasks, `celery.worker.state.successful_requests`, only where "
        "`worker_deduplicate_successful_tasks` is on; the test reads it in the worker's process.",
        where=IN_PROCESS,
        sides=("fast",),
    ),
    Reason(
        r"^test_tasks\.test_trace_log_arguments\.test_task_(success|failed)$",
        "The test looks for the worker's last log line 10 ms after the result: on a busy machine either side is late.",
        where=IN_PROCESS,
    ),
    Reason(
        r"^test_tasks\..*test_replaced_task_nesting_",
        "The test clears its flag after it has sent the task: a worker in its process that has it sooner sets it before.",
        where=IN_PROCESS,
    ),
    Reason(
        r"^test_inspect\.test_Inspect\.",
        "solo answers nothing during a task, and the module's tests go on meanwhile: which of them get no answer is chance.",
        where="solo$",
    ),
)
