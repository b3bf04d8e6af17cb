"""The frames of AMQP that the kit reads itself. Source: amqp 5.4.2, transport.py, channel.py (basic_deliver)."""

from struct import Struct

DELIVER = (60, 60)
METHOD, HEADER, BODY = 1, 2, 3
#: The bytes of a frame around its payload, and the value of its last byte.
OVERHEAD, END = 8, 0xCE

_quad = Struct(">Q").unpack_from


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
