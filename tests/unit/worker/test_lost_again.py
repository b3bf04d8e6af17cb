"""A broker that is lost again while the worker connects: it tries on."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.consumer import Consumer
from kombu.exceptions import OperationalError

from tests.harness.kit import kit


class Connected(BaseException):
    """The consumer has started again."""


def test_a_producers_error_as_the_consumer_starts_does_not_exit_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer sends then (mingle), and its producer raises OperationalError after PUBLISH_TIMEOUT."""
    app = kit({"CELERY_BROKER_URL": "amqp://127.0.0.1:1/", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1/1"})
    pool: Any = SimpleNamespace(is_green=False, num_processes=1, uses_semaphore=False)
    controller: Any = SimpleNamespace(_process_task=print, pool=pool, use_eventloop=False)
    consumer = Consumer(print, app=app, hostname="one@here", pool=pool, controller=controller, initial_prefetch_count=1)
    errors = [OperationalError("no node answers"), Connected()]

    def start(_: object) -> None:
        raise errors.pop(0)

    monkeypatch.setattr(consumer.blueprint, "start", start)
    monkeypatch.setattr(consumer.blueprint, "restart", lambda _: None)
    monkeypatch.setattr(consumer, "on_close", lambda: None)
    with pytest.raises(Connected):
        consumer.start()
