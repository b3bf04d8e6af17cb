"""A confirmed publish: written, and its answer read, with less work than py-amqp spends on it.

py-amqp walks a message's headers through a chain of comparisons for each value, looks before each message whether something
has arrived - a system call, and an exception where nothing has -, and waits for the confirm through promises. Here the kinds
of value that Celery's headers have are looked up, and what has arrived before the confirm is read with it. Every other kind, a
message without confirm, and a body that does not fit into one frame are py-amqp's own.
Source: amqp 5.4.2, serialization.py (_write_item), method_framing.py (frame_writer), channel.py (basic_publish_confirm).
"""

from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from struct import Struct
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from amqp import serialization, spec
from amqp.basic_message import Message
from amqp.exceptions import MessageNacked, RecoverableConnectionError

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import Part, Sample
from celery_kit.brokers.rabbitmq.frames_in import BODY, END, HEADER, METHOD, OVERHEAD
from celery_kit.engine.parts import on

CONFIRMS = [spec.Basic.Ack, spec.Basic.Nack]
_CONFIRMED = {bytes((0, 60, 0, 80)): spec.Basic.Ack, bytes((0, 60, 0, 120)): spec.Basic.Nack}
#: A frame's kind, channel and size before its payload, and its end after it.
_frame, _LAST = Struct(">BHI").pack, bytes((END,))
_publish, _content = Struct(">HHH").pack, Struct(">HHQ").pack

_short, _long = Struct(">H").pack, Struct(">I").pack
_string, _int, _double = Struct(">cI").pack, Struct(">ci").pack, Struct(">cd").pack
_LARGEST = 2**31 - 1

_write_any: Callable[[Any, Callable[[bytes], int], list[int]], None] = vars(serialization)["_write_item"]

#: By name: a property's flag, and how it is written; in the order in which they stand.
_PROPERTIES = {"content_type": 0x8000, "content_encoding": 0x4000, "application_headers": 0x2000, "delivery_mode": 0x1000,
               "priority": 0x0800, "correlation_id": 0x0400, "reply_to": 0x0200, "expiration": 0x0100}  # fmt: skip
_NUMBERS = ("delivery_mode", "priority")


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return _string(b"S", len(data)) + data


def _number(value: int) -> bytes:
    return _int(b"I", value) if -_LARGEST <= value <= _LARGEST else _any(value)


def _list(values: Any) -> bytes:
    data = b"".join([_WRITERS.get(type(value), _any)(value) for value in values])
    return b"A" + _long(len(data)) + data


def _any(value: Any) -> bytes:
    out = BytesIO()
    _write_any(value, out.write, [])
    return out.getvalue()


def table(values: dict[str, Any]) -> bytes:
    """A table, with its length before it. Raises ValueError for a value that AMQP has no kind for."""
    parts = []
    for name, value in values.items():
        parts.append(short(name))
        parts.append(_WRITERS.get(type(value), _any)(value))
    data = b"".join(parts)
    return _long(len(data)) + data


_WRITERS: dict[type, Callable[[Any], bytes]] = {
    str: _text,
    type(None): lambda _: b"V",
    bool: lambda value: b"t\1" if value else b"t\0",
    int: _number,
    float: lambda value: _double(b"d", value),
    list: _list,
    tuple: _list,
    dict: lambda value: b"F" + table(value),
}


@lru_cache(maxsize=1024)
def short(value: str) -> bytes:
    """A short text, with its length before it: the names of headers, exchanges and queues, which are the same all the time."""
    data = value.encode("utf-8", "surrogatepass")
    return bytes((len(data),)) + data


def properties(values: dict[str, Any]) -> bytes:
    """A message's properties, from their flags on. Raises KeyError where there is one that Celery's messages have not."""
    flags, found = 0, {}
    for name, value in values.items():
        if value is not None:
            flags |= _PROPERTIES[name]
            found[name] = value
    parts = [_short(flags)]
    for name in _PROPERTIES:
        if name not in found:
            continue
        value = found[name]
        if name == "application_headers":
            parts.append(table(value))
        elif name in _NUMBERS:
            parts.append(bytes((value,)))
        else:
            data = value.encode("utf-8", "surrogatepass")
            parts.append(bytes((len(data),)) + data)
    return b"".join(parts)


class _Kept(NamedTuple):
    """A sample's properties, written: what stands before its headers, the headers that all messages like it have, what stands
    before the correlation id, and what after `reply_to`. `ids`: the names of the headers that hold the message's id.
    """

    before: bytes
    headers: bytes
    between: bytes
    after: bytes
    ids: tuple[bytes, ...]
    sent: bool


_kept: WeakKeyDictionary[Sample, _Kept] = WeakKeyDictionary()
_OWN = ("argsrepr", "kwargsrepr", SENT)
_ARGS, _KWARGS, _SENT = map(short, _OWN)


def _keep(sample: Sample) -> _Kept:
    ids = [name for name, value in sample.headers.items() if value == sample.id]
    shared = {name: value for name, value in sample.headers.items() if name not in (*ids, *_OWN)}
    given = {**sample.properties, "content_type": sample.content_type, "content_encoding": sample.content_encoding}
    given |= {"application_headers": {}, "priority": sample.priority, "correlation_id": "", "reply_to": ""}
    names = list(_PROPERTIES)
    headers, own = names.index("application_headers"), names.index("correlation_id")
    before, between, after = (
        properties({name: given.get(name) for name in some})[2:]
        for some in (names[:headers], names[headers + 1 : own], names[own + 2 :])
    )
    flags = properties(given)[:2]
    return _Kept(flags + before, table(shared)[4:], between, after, tuple(map(short, ids)), SENT in sample.headers)


def properties_of(part: Part) -> bytes:
    """A message's properties, from their flags on, where it is like its sample: in a fifth of the time. The order of a table's
    names means nothing. Raises KeyError and ValueError where the sample's cannot be written.
    """
    kept = _kept.get(part.sample)
    if kept is None:
        kept = _kept[part.sample] = _keep(part.sample)
    task_id, reply_to = part.id.encode(), part.reply_to.encode()
    text = _string(b"S", len(task_id)) + task_id
    own = [kept.headers, *[name + text for name in kept.ids]]
    own += (_ARGS, _text(part.argsrepr), _KWARGS, _text(part.kwargsrepr))
    if kept.sent:
        own += (_SENT, _double(b"d", part.sent))
    headers = b"".join(own)
    ends = bytes((len(task_id),)) + task_id + bytes((len(reply_to),)) + reply_to
    return b"".join((kept.before, _long(len(headers)), headers, kept.between, ends, kept.after))


@lru_cache(maxsize=1024)
def _method(channel: int, exchange: str, routing_key: str, bits: int) -> bytes:
    """The frame of basic.publish."""
    return _whole(METHOD, channel, _publish(60, 40, 0) + short(exchange) + short(routing_key) + bytes((bits,)))


def _whole(kind: int, channel: int, data: bytes) -> bytes:
    return b"".join((_frame(kind, channel, len(data)), data, _LAST))


def _confirmed(answer: Any) -> None:
    if answer == spec.Basic.Nack:
        raise MessageNacked


#: What a value raises that is not written here.
_UNKNOWN = (KeyError, ValueError, TypeError, AttributeError)


class Publishing:
    """What a channel of py-amqp does better here. Its transport reads ahead (`rabbitmq_transport.py`)."""

    connection: Any
    channel_id: int
    events: dict[str, Any]
    _confirm_selected: bool
    _quick = False

    def confirm_select(self, nowait: bool = False) -> Any:
        self._confirm_selected, self._quick = True, on("frames_out")
        return super().confirm_select(nowait)  # type: ignore[misc]

    def publish_like(self, part: Part, timeout: float) -> bool:
        """Publish a message that is like its sample, and wait for its confirm; False where that is left to py-amqp.

        Raises as its basic_publish_confirm.
        """
        sample, connection = part.sample, self.connection
        if connection is None or not self._quick or len(part.body) > connection.frame_max - OVERHEAD:
            return False
        to = (sample.exchange, sample.routing_key, int(sample.mandatory))
        try:
            frames = self._framed(part.body, properties_of(part), *to)
        except _UNKNOWN:
            return False
        self._send(connection, frames, timeout)
        self.wait(CONFIRMS, _confirmed, timeout)
        return True

    def _basic_publish(
        self,
        msg: Any,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool | None = False,
        immediate: bool | None = False,
        timeout: float | None = None,
        **options: Any,
    ) -> Any:
        connection = self.connection
        frames = None
        if connection is not None and self._quick:
            frames = self._frames(msg, exchange, routing_key, bool(mandatory) + 2 * bool(immediate), connection.frame_max)
        if frames is None:
            publish = super()._basic_publish  # type: ignore[misc]
            return publish(msg, exchange, routing_key, mandatory, immediate, timeout, **options)
        self._send(connection, frames, timeout)
        return None

    def _send(self, connection: Any, frames: list[bytes], timeout: float | None) -> None:
        try:
            with connection.transport.having_timeout(timeout):
                connection.send_frames(frames)
        except TimeoutError:
            raise RecoverableConnectionError("basic_publish: timed out") from None

    def _frames(self, message: Message, exchange: str, routing_key: str, bits: int, largest: int) -> list[bytes] | None:
        """A method, a header and a body; None where that is py-amqp's."""
        body, given = message.body, message.properties
        if isinstance(body, str):
            body = body.encode(given.setdefault("content_encoding", "utf-8"))
        if len(body) > largest - OVERHEAD:
            return None
        try:
            return self._framed(body, properties(given), exchange, routing_key, bits)
        except _UNKNOWN:
            return None

    def _framed(self, body: bytes, about: bytes, exchange: str, routing_key: str, bits: int) -> list[bytes]:
        channel = self.channel_id
        frames = [_method(channel, exchange, routing_key, bits), _whole(HEADER, channel, _content(60, 0, len(body)) + about)]
        return [*frames, _whole(BODY, channel, body)] if body else frames

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        if method != CONFIRMS or not self._quick or self.events.get("basic_ack"):
            return super().wait(method, callback, timeout, returns_tuple)  # type: ignore[misc]
        connection = self.connection
        if connection is None:
            raise RecoverableConnectionError("connection already closed")
        transport = connection.transport
        with transport.having_timeout(timeout):
            while True:
                frame = kind, channel, data = transport.read_frame()
                if channel == self.channel_id and kind == METHOD and (answer := _CONFIRMED.get(data[:4])):
                    connection.bytes_recv += 1
                    return callback(answer)
                connection.on_inbound_frame(frame)
                if self.connection is None:
                    raise RecoverableConnectionError("connection already closed")
