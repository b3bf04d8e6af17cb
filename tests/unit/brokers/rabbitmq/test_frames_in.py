"""The arguments of a delivery equal those that py-amqp reads."""

from struct import pack

from amqp import serialization

from celery_kit.brokers.rabbitmq.frames_in import arguments


def test_the_arguments_of_a_delivery_are_read() -> None:
    payload = pack(">HH", 60, 60) + serialization.dumps("sLbss", ("tag-1", 2**33, True, "exchange", "key"))
    assert arguments(payload) == tuple(serialization.loads("sLbss", payload, 4)[0])
