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


def test_a_letter_of_an_earlier_version_is_sent_back(urls: Urls) -> None:
    """The note of an earlier version has six fields, that of a later one may have more."""
    name = f"dead-{uuid4()}"
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        RabbitmqDeadLetters().prepare(app)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            back = Queue(name, channel=connection.default_channel, durable=False, auto_delete=True)
            back.queue_declare()
            of_both = asdict(replace(LETTER, queue=name, reason="delivered 20 times, and no worker lived to end it"))
            earlier = {field: of_both[field] for field in ("id", "task", "queue", "reason", "when", "deliveries")}
            for note in ({**earlier, "id": f"{name}-earlier"}, {**of_both, "id": f"{name}-later", "more": [1]}):
                producer.publish({}, exchange="", routing_key=DEAD, headers={NOTE: note, "task": note["id"]})
            until("both are there", lambda: len(mine(app, name)) == 2)
            assert {letter.kind for letter in mine(app, name)} == {"poison", LETTER.kind}
            each(app, lambda letter: "retry" if letter.id.startswith(name) else "keep")
            found = [back.get(no_ack=True) for _ in range(2)]
            assert {one and one.headers["task"] for one in found} == {f"{name}-earlier", f"{name}-later"}
        assert not mine(app, name)


def test_a_full_queue_keeps_its_letters(urls: Urls) -> None:
    """A queue that refuses messages gets none, and their letters stay."""
    name = f"dead-{uuid4()}"
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        RabbitmqDeadLetters().prepare(app)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            full = Queue(
                name,
                channel=connection.default_channel,
                queue_arguments={"x-max-length": 1, "x-overflow": "reject-publish", "x-queue-type": "classic"},
            )
            full.queue_declare()
            try:
                producer.publish({}, exchange="", routing_key=name)
                letter = replace(LETTER, id=name, queue=name)
                producer.publish({}, exchange="", routing_key=DEAD, headers={NOTE: asdict(letter)})
                until("it is there", lambda: mine(app, name))
                with pytest.raises(OperationalError):
                    each(app, lambda letter: "retry" if letter.id == name else "keep")
                until("it is there again", lambda: mine(app, name) == [letter])
                each(app, lambda letter: "drop" if letter.id == name else "keep")
            finally:
                full.delete()


def mine(app: Kit, name: str) -> list[DeadLetter]:
    return [letter for letter in letters(app) if letter.id.startswith(name)]
