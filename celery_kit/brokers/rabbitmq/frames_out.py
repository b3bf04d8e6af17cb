"""A confirmed publish of a message like a sample, at lower cost than py-amqp's.

For each value of a message's headers, py-amqp goes through a chain of comparisons. Before each message it checks whether
something has arrived, which is a system call, and an exception if nothing has. It waits for the confirm through promises. Here
py-amqp encodes the sample once. Each message fills in its ids, arguments and time, and what arrives before its confirm is read
with it. py-amqp publishes all other messages, and those whose body does not fit into one frame.
Source: amqp 5.4.2, basic_message.py (_serialize_properties), method_framing.py (frame_writer), channel.py
(basic_publish_confirm).
"""

from __future__ import annotations

from struct import Struct, error, pack
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from amqp import spec
from amqp.exceptions import FrameSyntaxError, MessageNacked, RecoverableConnectionError
from amqp.serialization import dumps

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import Part, Sample
from celery_kit.brokers.rabbitmq.read_ahead import BODY, HEADER, METHOD, OVERHEAD, frame
from celery_kit.brokers.rabbitmq.transport import Declaring
from celery_kit.engine.parts import on

if TYPE_CHECKING:
    from upstream.amqp import Channel, Message
else:
    from amqp.basic_message import Message

    Channel = object

_PUBLISH, _ACK, _NACK = (pack(">HH", *method) for method in (spec.Basic.Publish, spec.Basic.Ack, spec.Basic.Nack))
_content, _long, _string, _double = Struct(">HHQ").pack, Struct(">I").pack, Struct(">cI").pack, Struct(">cd").pack
#: Headers that differ for each message, like its ids.
_OWN = ("argsrepr", "kwargsrepr", SENT)
#: What py-amqp raises for a value that AMQP has no type for, or that is too long.
_UNKNOWN = (FrameSyntaxError, KeyError, ValueError, TypeError, AttributeError, error)


class _Template(NamedTuple):
    """A sample as py-amqp encodes it: the method, then the properties, split where each message has its own.

    `ids`: the names of the headers that hold the message's id. `sent`: whether a header holds the time.
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
    """Encode a sample. Raises one of _UNKNOWN if that is not possible."""
    ids = [name for name, value in sample.headers.items() if value == sample.id]
    shared = {name: value for name, value in sample.headers.items() if name not in (*ids, *_OWN)}
    marks = ({"@headers@": None}, "@id@", "@reply_to@")
    given = {**sample.properties, "content_type": sample.content_type, "content_encoding": sample.content_encoding}
    given |= {"priority": sample.priority, "application_headers": marks[0], "correlation_id": marks[1], "reply_to": marks[2]}
    before, _, rest = Message(**given)._serialize_properties().partition(dumps("F", marks[:1]))
    between, _, after = rest.partition(dumps("ss", marks[1:]))
    method = _PUBLISH + dumps("Bssbb", (0, sample.exchange, sample.routing_key, sample.mandatory, False))
    return _Template(method, before, dumps("F", (shared,))[4:], between, after, tuple(map(_short, ids)), SENT in sample.headers)


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return _string(b"S", len(data)) + data


def frames(channel: int, part: Part) -> list[bytes]:
    """A message's frames: method, header and body. Raises one of _UNKNOWN if they cannot be encoded."""
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
    made = [frame(METHOD, channel, template.method), frame(HEADER, channel, b"".join(header))]
    return [*made, frame(BODY, channel, part.body)] if part.body else made


class Publishing(Declaring, Channel):
    """A channel of py-amqp whose transport reads ahead (`read_ahead.py`)."""

    def confirm_select(self, nowait: bool = False) -> object:
        """Have the broker confirm what is published from now on. Raises the connection's errors."""
        self._confirm_selected = True
        return super().confirm_select(nowait)

    def write_like(self, part: Part, timeout: float) -> bool:
        """Write a message that is like its sample, within `timeout` seconds. Returns False if py-amqp has to do that.

        Raises the same errors as py-amqp's basic_publish.
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
        """The same, and wait for the confirm as long. Raises the errors of a producer's channel."""
        written = self.write_like(part, timeout)
        if written:
            self.patiently(timeout, self._wait_for_confirm, timeout)
        return written

    def _wait_for_confirm(self, timeout: float) -> None:
        """Read until the confirm. Raises TimeoutError, and MessageNacked if the broker refuses the message."""
        with self.connection.transport.having_timeout(timeout):
            while (connection := self.connection) is not None:
                received = kind, channel, data = connection.transport.read_frame()
                if kind == METHOD and channel == self.channel_id and (method := data[:4]) in (_ACK, _NACK):
                    connection.bytes_recv += 1
                    if method == _NACK:
                        raise MessageNacked
                    return
                connection.on_inbound_frame(received)
        raise RecoverableConnectionError("connection already closed")
