"""To look at what is set aside does not hide it from who looks next. app/brokers/rabbitmq_dead.py"""

from contextlib import closing
from dataclasses import asdict

from app import Kit
from app.brokers.contract import DEAD, NOTE, DeadLetter
from app.brokers.rabbitmq_dead import RabbitmqDeadLetters
from app.dead import letters
from tests.engine.rabbitmq.conftest import Urls

LETTER = DeadLetter(id="1", task="t", queue="q", reason="a test", when="2000-01-01T00:00:00+00:00", deliveries=1)


def test_who_looks_next_sees_as_much(urls: Urls) -> None:
    with closing(Kit(broker=urls.broker, set_as_current=False)) as app:
        RabbitmqDeadLetters().prepare(app)
        with app.connection_for_write() as connection, connection.Producer() as producer:
            producer.publish({}, exchange="", routing_key=DEAD, headers={NOTE: asdict(LETTER)})
        assert [letters(app).count(LETTER) for _ in range(100)] == [1] * 100
