"""A delivery's frames give what py-amqp makes of them."""

from datetime import datetime
from decimal import Decimal
from struct import pack
from types import SimpleNamespace
from typing import Any

import pytest
from amqp import serialization
from amqp.basic_message import Message
from amqp.channel import Channel
from amqp.exceptions import UnexpectedFrame
from amqp.method_framing import frame_handler as amqps

from celery_kit.brokers.rabbitmq import frames_in

HEADERS = {
    "lang": "py", "task": "mail.send", "shadow": None, "retries": 0, "timelimit": [None, 5], "sent": 12.5,
    "ignore_result": False, "stamps": {}, "nested": {"a": ["é", {"b": None}]}, "large": 2**40, "small": -3,
    "at": datetime(2031, 5, 1), "price": Decimal("1"),
}  # fmt: skip
KINDS = {
    "Celery's": {
        "content_type": "application/json", "content_encoding": "utf-8", "application_headers": HEADERS, "delivery_mode": 2,
        "priority": 3, "correlation_id": "id-1", "reply_to": "me",
    },
    "with what Celery has not": {"application_headers": HEADERS, "message_id": "m", "timestamp": 5, "type": "t"},
    "with none": {},
}  # fmt: skip
as_sent: Any = Message
METHOD = serialization.dumps("sLbss", ("tag-1", 2**33, True, "exchange", "key"))


def frames(properties: dict[str, Any], *chunks: bytes) -> list[tuple[int, int, bytes]]:
    header = pack(">HHQ", 60, 0, sum(map(len, chunks))) + as_sent("", **properties)._serialize_properties()
    return [(1, 1, pack(">HH", 60, 60) + METHOD), (2, 1, header), *((3, 1, chunk) for chunk in chunks)]


def taken(handler: Any, sent: list[tuple[int, int, bytes]], **state: Any) -> tuple[list[bool], list[Any]]:
    """What py-amqp's handler of frames, or the kit's, says of each frame, and what a consumer gets."""
    found: list[Any] = []
    connection: Any = SimpleNamespace(bytes_recv=0, channels={}, confirm_publish=False, _claim_channel_id=bool)
    channel: Any = Channel(connection, 1)
    channel.callbacks["tag-1"] = found.append
    for name, value in state.items():
        setattr(channel, name, value)
    handle = handler(connection, lambda number, *given: connection.channels[number].dispatch_method(*given))
    whole = [bool(handle(frame)) for frame in sent]
    assert connection.bytes_recv == len(sent)
    return whole, [(one.channel is channel, one.delivery_info, one.properties, one.body) for one in found]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunks", [(b"one",), (b"one", b"two"), ()])
def test_a_delivery_is_what_py_amqp_makes_of_it(kind: str, chunks: tuple[bytes, ...]) -> None:
    sent = [*frames(KINDS[kind], *chunks), (1, 1, pack(">HH", 60, 11)), *frames(KINDS[kind], b"next")]
    assert taken(frames_in.frame_handler, sent) == taken(amqps, sent)


def test_a_heartbeat_may_come_within_a_delivery() -> None:
    first, *rest = frames(KINDS["Celery's"], b"one")
    sent = [first, (8, 0, b""), *rest]
    assert taken(frames_in.frame_handler, sent) == taken(amqps, sent)


def test_another_method_within_a_delivery_is_an_error() -> None:
    first, *_ = frames(KINDS["Celery's"], b"one")
    with pytest.raises(UnexpectedFrame):
        taken(frames_in.frame_handler, [first, first])


@pytest.mark.parametrize("state", [{"is_closing": True}, {"auto_decode": False}])
def test_a_channel_decides_what_becomes_of_a_delivery(state: dict[str, Any]) -> None:
    sent = frames(KINDS["Celery's"], b"one")
    assert taken(frames_in.frame_handler, sent, **state) == taken(amqps, sent, **state)


def test_a_delivery_that_is_waited_for_is_py_amqps() -> None:
    sent = frames(KINDS["Celery's"], b"one")
    waiting: list[Any] = []
    taken(frames_in.frame_handler, sent, _pending={(60, 60): lambda *given: waiting.append(given)})
    assert waiting


def test_what_a_delivery_says_is_read() -> None:
    payload = pack(">HH", 60, 60) + METHOD
    assert frames_in.arguments(payload) == tuple(serialization.loads("sLbss", payload, 4)[0])
