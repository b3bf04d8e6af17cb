"""Decodes the frames of a delivery in half of py-amqp's time: the largest cost of a worker on RabbitMQ, after the task itself.

py-amqp passes each value of a message's headers - Celery's have some twenty-five - through a chain of comparisons. Here the
common kinds come first. Other kinds, and messages with other properties than Celery's, are decoded by py-amqp. A message whose
properties nobody can decode, such as a table that is nested 2,000 deep, is delivered without them, and dead-lettered.
Source: amqp 5.4.2, serialization.py (_read_item, decode_properties_basic), method_framing.py (frame_handler),
abstract_channel.py (dispatch_method).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, TypeAlias

from amqp import basic_message, method_framing, serialization, spec
from amqp.exceptions import UnexpectedFrame

from celery_kit.base.messages import UNREADABLE
from celery_kit.base.sizes import is_for_texts
from celery_kit.brokers.rabbitmq.read_ahead import BODY, HEADER, METHOD

if TYPE_CHECKING:
    from upstream.amqp import Connection, Message

    from celery_kit.base.types import Callback, Headers
else:
    Message = basic_message.Message

#: A frame's kind, channel and payload.
Frame: TypeAlias = tuple[int, int, bytes]

HEARTBEAT = 8
DELIVER = spec.Basic.Deliver
_DELIVER = bytes((0, DELIVER[0], 0, DELIVER[1]))
_STRING, _VOID, _INT, _DOUBLE = b"SVId"

_read_any: Callable[[bytes, int], tuple[object, int]] = vars(serialization)["_read_item"]
amqps_frame_handler: Callable[[object, Callback], Callable[[Frame], object]] = vars(method_framing)["frame_handler"]
_short, _long, _signed, _quad, _double = (Struct(f">{form}").unpack_from for form in "HIiQd")

#: By bit of a message's flags, the properties that Celery's messages have, in their order; the headers are the third.
_TEXTS = ((0x8000, "content_type"), (0x4000, "content_encoding"))
_MORE = (
    (0x1000, "delivery_mode", False),
    (0x0800, "priority", False),
    (0x0400, "correlation_id", True),
    (0x0200, "reply_to", True),
)
_HEADERS, _KNOWN = 0x2000, 0xFE00


def table(data: bytes, at: int, end: int) -> Headers:
    """A table's names and values. `at`: where the length of its first name is. Raises ValueError for text that is not UTF-8."""
    found: Headers = {}
    value: object
    while at < end:
        start = at + 1
        at = start + data[at]
        name = data[start:at].decode()
        kind = data[at]
        at += 1
        if kind == _VOID:
            value = None
        elif kind == _STRING:
            start = at + 4
            at = start + _long(data, at)[0]
            value = data[start:at].decode()
        elif kind == _INT:
            (value,) = _signed(data, at)
            at += 4
        elif kind == _DOUBLE:
            (value,) = _double(data, at)
            at += 8
        else:
            value, at = _read_any(data, at - 1)
        found[name] = value
    return found


def properties(data: bytes, at: int) -> Headers:
    """A message's properties. `at`: where its flags are. Raises ValueError for one that Celery's messages do not have."""
    (flags,) = _short(data, at)
    if flags & ~_KNOWN:
        raise ValueError("unknown properties")
    at += 2
    found: Headers = {}
    for flag, name in _TEXTS:
        if flags & flag:
            start = at + 1
            at = start + data[at]
            found[name] = data[start:at].decode()
    if flags & _HEADERS:
        start = at + 4
        at = start + _long(data, at)[0]
        found["application_headers"] = table(data, start, at)
    for flag, name, is_text in _MORE:
        if flags & flag:
            start = at + 1
            at = start + data[at] if is_text else start
            found[name] = data[start:at].decode() if is_text else data[start - 1]
    return found


def arguments(data: bytes) -> tuple[str, int, bool, str, str]:
    """The arguments of basic.deliver: consumer tag, delivery tag, whether it is a redelivery, exchange and routing key."""
    end = 5 + data[4]
    consumer = data[5:end].decode()
    (tag,) = _quad(data, end)
    again = bool(data[end + 8] & 1)
    start = end + 10
    at = start + data[end + 9]
    exchange = data[start:at].decode()
    return consumer, tag, again, exchange, data[at + 1 : at + 1 + data[at]].decode()


class Delivery(Message):
    """py-amqp's message."""

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> int:
        try:
            self.properties = properties(buf, offset)
            return offset
        except Exception:  # of other kinds than Celery's, or of none that there are
            try:
                return super()._load_properties(class_id, buf, offset)
            except Exception as error:
                self.properties = {"application_headers": {UNREADABLE: f"{type(error).__name__}: {error}"}}
                return offset


def frame_handler(connection: Connection, callback: Callback) -> Callable[[Frame], bool]:
    """py-amqp's handler of frames, with deliveries assembled here. It returns whether a frame completed a method."""
    others = amqps_frame_handler(connection, callback)
    begun: dict[int, Delivery] = {}

    def on_frame(frame: Frame) -> bool:
        kind, number, data = frame
        message = begun.get(number)
        if message is None:
            if kind != METHOD or data[:4] != _DELIVER:
                return bool(others(frame))
            connection.bytes_recv += 1
            begun[number] = Delivery(frame_method=DELIVER, frame_args=data)
            return False
        if kind == HEARTBEAT:
            return bool(others(frame))
        connection.bytes_recv += 1
        if kind == HEADER and not message.body_size:
            message.inbound_header(data)
        elif kind == BODY:
            message.inbound_body(data)
        else:
            raise UnexpectedFrame(f"Received frame {kind} within a delivery")
        if not message.ready:
            return False
        del begun[number]
        channel = connection.channels.get(number)
        if channel is None or channel.is_closing or DELIVER in channel._pending:
            callback(number, DELIVER, message.frame_args, message)
            return True
        encoding = message.properties.get("content_encoding")
        if encoding and channel.auto_decode and (encoding == "utf-8" or is_for_texts(encoding)):
            with suppress(Exception):  # like py-amqp, which leaves a body that cannot be decoded as bytes
                message.body = message.body.decode(encoding)
        channel._on_basic_deliver(*arguments(message.frame_args), message)
        return True

    return on_frame
