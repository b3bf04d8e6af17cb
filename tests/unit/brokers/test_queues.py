"""The declaration of a queue without a type, and the explanation of a refused declaration."""

from typing import Any

import pytest
from amqp.exceptions import ConsumerCancelled, PreconditionFailed
from celery import Celery
from kombu import Exchange, Queue

from celery_kit import Kit
from celery_kit.brokers.rabbitmq.dead import WITH_DEAD_LETTERS, explain

QUORUM = {"task_default_queue_type": "quorum", "task_create_missing_queue_type": "quorum"}
AS_THE_PROFILE = WITH_DEAD_LETTERS | {"x-queue-type": "quorum"}


def declared(*queues: Any, **settings: Any) -> dict[str, Any]:
    app: Celery = Kit("queues", set_as_current=False, broker="memory://")
    app.conf.update(task_queues=queues or None, **settings)
    found: Any = app.amqp.queues
    return {name: queue.queue_arguments for name, queue in found.items()}


@pytest.mark.parametrize(
    "listed", [{}, {"name": "celery"}, {"name": "celery", "exchange": Exchange("celery"), "routing_key": "celery"}]
)
def test_a_queue_without_a_type_has_the_profiles_type(listed: dict[str, Any]) -> None:
    """A queue that the user lists is declared like one that nobody lists."""
    assert declared(*([Queue(**listed)] if listed else []), **QUORUM) == {"celery": AS_THE_PROFILE}
    assert declared(*([Queue(**listed)] if listed else [])) == {"celery": None}


@pytest.mark.parametrize(
    "queue",
    [
        Queue("celery", queue_arguments={"x-queue-type": "classic"}),
        Queue("celery", queue_arguments={"x-max-priority": 10}),
        Queue("celery", max_priority=10),
        Queue("celery", durable=False),
        Queue("celery", exclusive=True),
        Queue("celery", auto_delete=True),
    ],
)
def test_a_queue_that_cannot_be_a_quorum_queue_is_unchanged(queue: Queue) -> None:
    before = dict(queue.queue_arguments or {})
    assert (declared(queue, **QUORUM)["celery"] or {}) == before


def test_a_refused_declaration_is_explained_and_nothing_else_is() -> None:
    text = "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'mine' in vhost 'kit': received 'quorum' but …"
    line = explain(PreconditionFailed(text, (50, 10), reply_code=406)) or ""
    assert "the queue 'mine' is there already" in line and "received 'quorum'" in line and "task_queues" in line
    timed_out = PreconditionFailed(
        "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out", (0, 0), reply_code=406
    )
    for other in (timed_out, ConsumerCancelled("gone", (60, 30)), OSError("away"), ValueError()):
        assert explain(other) is None
