"""A message's frames are what py-amqp makes of it; what is not written here is left to py-amqp."""

from types import SimpleNamespace
from typing import Any

import pytest
from amqp.basic_message import Message
from amqp.method_framing import frame_writer
from amqp.serialization import dumps

from celery_kit.brokers.rabbitmq.frames_out import Publishing
from tests.unit.brokers.rabbitmq.test_frames_in import KINDS

as_sent: Any = Message
LARGEST = 131_072
OPTIONS = {
    "content_type": "application/json", "delivery_mode": 2, "priority": 0, "correlation_id": "é", "expiration": "5",
    "application_headers": {"ends": [2**31 - 1, -(2**31) + 1, 2**31, -(2**31)], "yes": True, "raw": b"\0", "none": {"": ()}},
}  # fmt: skip


def channel() -> Any:
    one: Any = Publishing()
    one.channel_id = 7
    return one


def by_amqp(message: Any, exchange: str, routing_key: str, mandatory: bool, immediate: bool) -> bytes:
    written: list[bytes] = []
    connection: Any = SimpleNamespace(frame_max=LARGEST, bytes_sent=0)
    transport: Any = SimpleNamespace(write=lambda data: written.append(bytes(data)))
    arguments = dumps("Bssbb", (0, exchange, routing_key, mandatory, immediate))
    frame_writer(connection, transport)(1, 7, (60, 40), arguments, message)
    return b"".join(written)


@pytest.mark.parametrize("body", ["té", b"\0\xce", "", b"x" * (LARGEST - 4_000), b"x" * (LARGEST - 8)])
@pytest.mark.parametrize("properties", [KINDS["Celery's"], KINDS["with none"], OPTIONS])
@pytest.mark.parametrize("bits", range(4))
def test_a_messages_frames_are_py_amqps(properties: dict[str, Any], body: str | bytes, bits: int) -> None:
    frames = channel()._frames(as_sent(body, **properties), "exchange", "a.key", bits, LARGEST)
    assert b"".join(frames) == by_amqp(as_sent(body, **properties), "exchange", "a.key", bool(bits & 1), bool(bits & 2))


@pytest.mark.parametrize(
    ("properties", "body", "key"),
    [
        (KINDS["with what Celery has not"], "", "key"),
        ({"application_headers": {"a": object()}}, "", "key"),
        ({"application_headers": {"x" * 256: 1}}, "", "key"),
        ({"correlation_id": 5}, "", "key"),
        ({"priority": 256}, "", "key"),
        ({}, "", "k" * 256),
        ({}, b"x" * (LARGEST - 7), "key"),
    ],
    ids=["a property", "a kind", "a long name", "no text", "a large number", "a long key", "a large body"],
)
def test_what_is_not_celerys_is_left_to_py_amqp(properties: dict[str, Any], body: str | bytes, key: str) -> None:
    assert channel()._frames(as_sent(body, **properties), "", key, 0, LARGEST) is None
