"""Many messages at once on RabbitMQ, and an error among them. celery_kit/brokers/rabbitmq/bulk.py"""

from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest

from celery_kit import Kit
from celery_kit.brokers.rabbitmq.bulk import Bulk
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import Sender
from tests.engine.rabbitmq.conftest import Urls


@pytest.mark.parametrize("where", ["send", "confirm_select"])
def test_no_error_leaves_a_channel_open(urls: Urls, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A channel that is opened for a step is closed when the step raises any exception."""
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        app.conf.update(broker_transport_options={"confirm_publish": True})

        @app.task
        def some(number: int) -> None: ...

        with app.producer_or_acquire() as producer:
            options = {"queue": f"bulk-{uuid4()}", "expires": 60}
            Sender(app, some, options, producer).send([Call((1,))])
            producer.channel.queue_delete(options["queue"])
            channels: Any = producer.connection.connection.channels
            before = set(channels)
            if where == "confirm_select":
                monkeypatch.setattr(type(producer.channel), where, _interrupted)
            bad = Call((2,), {}, {"priority": "high"} if where == "send" else {})  # no AMQP
            for _ in range(3):
                with pytest.raises(Exception, match="integer" if where == "send" else "interrupted"):
                    Sender(app, some, options, producer).send([Call((1,)), bad])
            assert set(channels) == before


def _interrupted(_: Any) -> None:
    raise RuntimeError("interrupted")


def test_an_error_at_its_end_does_not_hide_the_one_before(urls: Urls, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error while closing must not replace the original one."""
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        app.conf.update(broker_transport_options={"confirm_publish": True})

        @app.task
        def some(number: int) -> None: ...

        def broken(self: Any, parts: Any) -> None:
            self.channel.connection.transport.close()
            raise RuntimeError("the first")

        monkeypatch.setattr(Bulk, "send", broken)
        with app.producer_or_acquire() as producer, pytest.raises(RuntimeError, match="the first"):
            Sender(app, some, {"queue": f"bulk-{uuid4()}"}, producer).send([Call((1,))])
