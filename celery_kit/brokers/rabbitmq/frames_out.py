"""A confirmed publish of a message that is like a sample, with less work than py-amqp spends on it.

py-amqp walks a message's headers through a chain of comparisons for each value, looks before each message whether something
has arrived - a system call, and an exception where nothing has -, and waits for the confirm through promises. Here py-amqp
writes the sample once; each message fills in its ids, arguments and time, and what arrives before its confirm is read with it.
Any other message, and a body that does not fit into one frame, are py-amqp's own.
Source: amqp 5.4.2, basic_message.py (_serialize_properties), method_framing.py (frame_writer), channel.py
(basic_publish_confirm).
"""

from struct import Struct, error
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from amqp import spec
from amqp.basic_message import Message
from amqp.exceptions import FrameSyntaxError, MessageNacked, RecoverableConnectionError
from amqp.serialization import dumps

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import Part, Sample
from celery_kit.brokers.rabbitmq.frames_in import BODY, END, HEADER, METHOD, OVERHEAD
from celery_kit.engine.parts import on

CONFIRMS = [spec.Basic.Ack, spec.Basic.Nack]
_CONFIRMED = {bytes((0, 60, 0, 80)): spec.Basic.Ack, bytes((0, 60, 0, 120)): spec.Basic.Nack}
as_sent: Any = Message  # its stubs know little of it
_PUBLISH = bytes((0, 60, 0, 40))
#: A frame's kind, channel and size before its payload, and its end after it.
_frame, _LAST = Struct(">BHI").pack, bytes((END,))
_content, _long, _string, _double = Struct(">HHQ").pack, Struct(">I").pack, Struct(">cI").pack, Struct(">cd").pack
#: Headers that each message has of its own, beside its ids.
_OWN = ("argsrepr", "kwargsrepr", SENT)
#: What py-amqp raises for a value that AMQP has no kind for, or no room.
_UNKNOWN = (FrameSyntaxError, KeyError, ValueError, TypeError, AttributeError, error)


class _Template(NamedTuple):
    """A sample as py-amqp writes it: the method, then the properties, cut where each message has its own. `ids`: the names of
    the headers that hold the message's id. `sent`: one holds the time.
    """

    method: bytes
    before: bytes
    headers: bytes
    between: bytes
    after: bytes
    ids: tuple[bytes, ...]
    sent: bool


_templates: WeakKeyDictionary[Sample, _Template] = WeakKeyDictionary()


def _short(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return bytes((len(data),)) + data


_ARGS, _KWARGS, _SENT = map(_short, _OWN)


def _template(sample: Sample) -> _Template:
    """Raises one of _UNKNOWN where the sample cannot be written."""
    ids = [name for name, value in sample.headers.items() if value == sample.id]
    shared = {name: value for name, value in sample.headers.items() if name not in (*ids, *_OWN)}
    marks = ({"@headers@": None}, "@id@", "@reply_to@")
    given = {**sample.properties, "content_type": sample.content_type, "content_encoding": sample.content_encoding}
    given |= {"priority": sample.priority, "application_headers": marks[0], "correlation_id": marks[1], "reply_to": marks[2]}
    before, _, rest = as_sent(**given)._serialize_properties().partition(dumps("F", marks[:1]))
    between, _, after = rest.partition(dumps("ss", marks[1:]))
    method = _PUBLISH + dumps("Bssbb", (0, sample.exchange, sample.routing_key, sample.mandatory, False))
    return _Template(method, before, dumps("F", (shared,))[4:], between, after, tuple(map(_short, ids)), SENT in sample.headers)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return _string(b"S", len(data)) + data


def _whole(kind: int, channel: int, data: bytes) -> bytes:
    return b"".join((_frame(kind, channel, len(data)), data, _LAST))


def frames(channel: int, part: Part) -> list[bytes]:
    """A message's frames: a method, a header and a body. Raises one of _UNKNOWN where they cannot be written."""
    template = _templates.get(part.sample)
    if template is None:
        template = _templates[part.sample] = _template(part.sample)
    task_id = _text(part.id)
    own = [template.headers, *[name + task_id for name in template.ids]]
    own += (_ARGS, _text(part.argsrepr), _KWARGS, _text(part.kwargsrepr))
    if template.sent:
        own += (_SENT, _double(b"d", part.sent))
    headers = b"".join(own)
    header = (
        _content(60, 0, len(part.body)), template.before, _long(len(headers)), headers, template.between, _short(part.id),
        _short(part.reply_to), template.after,
    )  # fmt: skip
    made = [_whole(METHOD, channel, template.method), _whole(HEADER, channel, b"".join(header))]
    return [*made, _whole(BODY, channel, part.body)] if part.body else made


def _confirmed(answer: Any) -> None:
    if answer == spec.Basic.Nack:
        raise MessageNacked


class Publishing:
    """What a channel of py-amqp does better here. Its transport reads ahead (`read_ahead.py`)."""

    connection: Any
    channel_id: int
    events: dict[str, Any]
    _confirm_selected: bool

    def confirm_select(self, nowait: bool = False) -> Any:
        self._confirm_selected = True
        return super().confirm_select(nowait)  # type: ignore[misc]

    def write_like(self, part: Part, timeout: float) -> bool:
        """Write a message that is like its sample, in `timeout` seconds; False where that is left to py-amqp.

        Raises as its basic_publish.
        """
        connection = self.connection
        fit = connection is not None and self._confirm_selected and len(part.body) <= connection.frame_max - OVERHEAD
        if not fit or not on("frames_out"):
            return False
        try:
            written = frames(self.channel_id, part)
        except _UNKNOWN:
            return False
        try:
            with connection.transport.having_timeout(timeout):
                connection.send_frames(written)
        except TimeoutError:
            raise RecoverableConnectionError("basic_publish: timed out") from None
        return True

    def publish_like(self, part: Part, timeout: float) -> bool:
        """The same, and wait for its confirm as long. Raises as py-amqp's basic_publish_confirm."""
        written = self.write_like(part, timeout)
        if written:
            self.wait(CONFIRMS, _confirmed, timeout)
        return written

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        if method != CONFIRMS or self.events.get("basic_ack") or not on("frames_out"):
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
