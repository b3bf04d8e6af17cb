"""Queues that task_queues does not name: fix missing_queue_type."""

from typing import Any

from celery import Celery
from celery.app.amqp import AMQP

from celery_kit.fixes.queues import MissingQueueType


class Fixed(MissingQueueType, AMQP):
    pass


def test_a_missing_queue_has_the_type_of_the_settings() -> None:
    app = Celery("some", set_as_current=False)
    app.conf.update(task_create_missing_queue_type="quorum", task_create_missing_queue_exchange_type="topic")
    amqp: Any = Fixed(app)
    queue = amqp.queues["missing"]
    assert (queue.queue_arguments, queue.exchange.type) == ({"x-queue-type": "quorum"}, "topic")
