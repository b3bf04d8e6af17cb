"""Which queues hold tasks that wait for a worker."""

import pytest

from celery_kit.base.facts import carries_tasks
from celery_kit.base.messages import FAILED


@pytest.mark.parametrize("queue", ["celery", "mail"])
def test_a_queue_of_tasks_is_one(queue: str) -> None:
    assert carries_tasks(queue)


@pytest.mark.parametrize("queue", [FAILED, "celeryev.1", "w@h.celery.pidbox", "celery_delayed_3"])
def test_a_queue_that_no_worker_consumes_is_none(queue: str) -> None:
    """Otherwise `make doctor` would have a worker started for it, and an alert would say that tasks wait."""
    assert not carries_tasks(queue)
