"""The frames of a message that is like its sample are what py-amqp makes of it; what cannot be written is left to py-amqp."""

from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, cast

import pytest
from amqp.basic_message import Message
from amqp.serialization import decode_properties_basic, dumps

from celery_kit.base.messages import Part, Sample, message_of
from celery_kit.brokers.rabbitmq.frames_out import _UNKNOWN, frames

HEADERS = {
    "ends": [2**31 - 1, -(2**31) + 1, 2**31, -(2**31)], "yes": True, "raw": b"\0", "none": {"": ()}, "id": "@", "root_id": "@",
    "argsrepr": "", "sent": 0.0, "kwargsrepr": "",
}  # fmt: skip
SAMPLE = Sample(
    "@", 0, "application/json", "utf-8", HEADERS, {"delivery_mode": 2, "expiration": "5"}, "exchange", "a.key", True
)
PART = Part(SAMPLE, "é" * 18, b"{}", "(\udc80,)", "{'é': 1}", 1.5, "reply")
CELERYS = {
    "lang": "py", "task": "mail.send", "shadow": None, "retries": 0, "timelimit": [None, 5], "sent": 12.5,
    "ignore_result": False, "stamps": {}, "nested": {"a": ["é", {"b": None}]}, "large": 2**40, "small": -3,
    "at": datetime(2031, 5, 1), "price": Decimal("1"),
}  # fmt: skip
as_sent: Any = Message
channel: Any = SimpleNamespace(
    prepare_message=lambda body, priority, content_type, content_encoding, headers, properties: as_sent(
        body,
        priority=priority,
        content_type=content_type,
        content_encoding=content_encoding,
        application_headers=headers,
        **properties,
    )
)


def decoded(data: bytes) -> dict[str, Any]:
    return dict(decode_properties_basic(data, 0)[0])


@pytest.mark.parametrize("body", [b"\0\xce", b"", b"x" * 130_000])
@pytest.mark.parametrize("headers", [HEADERS, CELERYS, {}])
@pytest.mark.parametrize("priority", [None, 9])
@pytest.mark.parametrize("mandatory", [True, False])
def test_a_messages_frames_equal_those_of_py_amqp(headers: Any, body: bytes, priority: int | None, mandatory: bool) -> None:
    """The order of the names in a table has no meaning."""
    part = PART._replace(body=body, sample=replace(SAMPLE, headers=headers, priority=priority, mandatory=mandatory))
    method, header, *bodies = frames(7, part)
    assert method[7:-1] == bytes((0, 60, 0, 40)) + dumps("Bssbb", (0, "exchange", "a.key", mandatory, False))
    assert bodies == ([bytes((3, 0, 7)) + len(body).to_bytes(4, "big") + body + b"\xce"] if body else [])
    for frame, kind in ((method, 1), (header, 2)):
        assert frame[:7] == bytes((kind, 0, 7)) + (len(frame) - 8).to_bytes(4, "big") and frame[-1] == 0xCE
    assert header[7:19] == bytes((0, 60, 0, 0)) + len(body).to_bytes(8, "big")
    message: Any = message_of(channel, part)
    assert decoded(header[19:-1]) == decoded(message._serialize_properties())


@pytest.mark.parametrize(
    "part",
    [
        PART._replace(sample=replace(SAMPLE, headers={"a": object()})),
        PART._replace(sample=replace(SAMPLE, headers={"x" * 256: 1})),
        PART._replace(sample=replace(SAMPLE, priority=256)),
        PART._replace(sample=replace(SAMPLE, routing_key="k" * 256)),
        PART._replace(id="i" * 256),
        PART._replace(reply_to=cast(Any, None)),
    ],
    ids=["a kind", "a long name", "a large number", "a long key", "a long id", "no text"],
)
def test_py_amqp_handles_what_cannot_be_encoded(part: Part) -> None:
    with pytest.raises(_UNKNOWN):
        frames(7, part)
