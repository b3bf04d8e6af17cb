"""The declarations of the dead-letter queues when a worker starts."""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

from celery_kit.base.messages import DEAD
from celery_kit.brokers.rabbitmq.dead import EXPIRED, QUEUES, RabbitmqDeadLetters


def declared() -> list[tuple[str, str, bool]]:
    """The methods that prepare() sends: the name, the queue or exchange, and whether it waits for an answer."""
    channel = MagicMock()

    @contextmanager
    def connection() -> Any:
        yield SimpleNamespace(default_channel=channel)

    app: Any = SimpleNamespace(connection_for_read=connection)
    RabbitmqDeadLetters().prepare(app)
    return [
        (name, str(given.get("queue") or given["exchange"]), not given["nowait"])
        for name, _, given in channel.method_calls
        if "nowait" in given
    ]


def test_only_the_last_queue_is_waited_for() -> None:
    asked = declared()
    assert [about for _, about, waits in asked if waits] == [DEAD, EXPIRED, EXPIRED]
    assert [waits for *_, waits in asked] == sorted(waits for *_, waits in asked)


def test_every_queue_is_declared_and_bound() -> None:
    asked = declared()
    assert [about for name, about, _ in asked if name == "queue_declare"] == [queue.name for queue in QUEUES]
    assert [about for name, about, _ in asked if name == "queue_bind"] == [
        queue.name for queue in QUEUES if queue.exchange.name
    ]
