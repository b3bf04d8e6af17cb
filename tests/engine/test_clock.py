"""The times of deliveries, and so the visibility timeout, are by the clock of the Redis server: a worker's may be wrong.

Fix server_clock; celery_kit/brokers/redis/fetch.py
"""

import time
from typing import Any
from uuid import uuid4

import pytest

from tests.engine.test_fetch import Taken, connection, publish
from tests.harness.servers import Server

wrong = pytest.mark.parametrize("wrong", [3_600, -3_600], ids=["ahead", "behind"])
engines = pytest.mark.parametrize("engine", ["fast", "plain"])


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: int) -> None:
    """Set the clock that kombu uses, and that of the fetch if it has one."""
    for module in ("kombu.transport.redis", "celery_kit.brokers.redis.fetch"):
        monkeypatch.setattr(f"{module}.time", lambda: time.time() + seconds, raising=False)


@wrong
@engines
def test_a_message_was_taken_when_the_server_says(
    server: Server, engine: str, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = uuid4().hex
    set_clock(monkeypatch, wrong)
    with connection(server, engine) as one:
        publish(one, queue, "a")
        before = server.broker.time()[0]
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        score = server.broker.zscore("unacked_index", taken.messages[0].delivery_tag)
        assert score and before <= score <= server.broker.time()[0] + 1
        taken.messages[0].ack()
        taken.drain(lambda: not server.broker.hlen("unacked"))


@wrong
@engines
def test_a_wrong_clock_gives_back_what_is_due(server: Server, engine: str, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of another worker are restored only after their visibility timeout."""
    queue = uuid4().hex
    with connection(server, engine) as one, connection(server, engine, visibility_timeout=600) as other:
        publish(one, queue, "a")
        taken = Taken(one, [queue])
        taken.drain(lambda: taken.messages)
        set_clock(monkeypatch, wrong)
        channel: Any = other.default_channel
        channel.qos.restore_visible(interval=1)
        assert (server.broker.hlen("unacked"), server.broker.llen(queue)) == (1, 0)
        channel.qos.visibility_timeout = 0
        channel.qos.restore_visible(interval=1)
        assert (server.broker.hlen("unacked"), server.broker.llen(queue)) == (0, 1)
        taken.messages[0].ack()
