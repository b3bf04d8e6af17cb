"""Listing dead letters does not hide them from the next command. celery_kit/brokers/rabbitmq/dead.py"""

from contextlib import closing
from dataclasses import asdict, replace
from uuid import uuid4

import pytest
from kombu import Queue
from kombu.exceptions import OperationalError

from celery_kit import Kit
from celery_kit.base.messages import DEAD, NOTE
from celery_kit.brokers.contract import DeadLetter
from celery_kit.brokers.rabbitmq.dead import RabbitmqDeadLetters
from celery_kit.operate.look.dead import each, letters
from tests.engine.rabbitmq.conftest import Urls
from tests.harness.waiting import until

LETTER = DeadLetter(id="1", task="t", queue="q", reason="a test", when="2000-01-01T00:00:00+00:00", deliveries=1)


def test_who_looks_next_sees_as_much(urls: Urls) -> None:
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        RabbitmqDeadLetters().prepare(app)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            producer.publish({}, exchange="", routing_key=DEAD, headers={NOTE: asdict(LETTER)})
        assert [letters(app).count(LETTER) for _ in range(100)] == [1] * 100


def test_one_that_cannot_be_sent_back_keeps_no_other(urls: Urls) -> None:
    """Dead letters that cannot be sent back are reported and stay. All others are listed and sent back."""
    name = f"dead-{uuid4()}"
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        app.conf.update(publish_timeout=1, broker_transport_options={"confirm_publish": True})
        RabbitmqDeadLetters().prepare(app)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            back = Queue(name, channel=connection.default_channel, durable=False, auto_delete=True)
            back.queue_declare()
            gone, fine = (replace(LETTER, id=f"{name}-{queue}", queue=queue) for queue in ("gone", name))
            producer.publish({}, exchange="", routing_key=DEAD, correlation_id=f"{name}-odd")
            for letter in (gone, fine):
                producer.publish({}, exchange="", routing_key=DEAD, headers={NOTE: asdict(letter)})
            until("all are there", lambda: len(mine(app, name)) == 3)
            with pytest.raises(OperationalError):
                each(app, lambda letter: "retry" if letter.id.startswith(name) else "keep")
            assert back.get(no_ack=True)
            assert {letter.id for letter in mine(app, name)} == {f"{name}-odd", gone.id}
            each(app, lambda letter: "drop" if letter.id.startswith(name) else "keep")


def mine(app: Kit, name: str) -> list[DeadLetter]:
    return [letter for letter in letters(app) if letter.id.startswith(name)]
