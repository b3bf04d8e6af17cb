"""Reading ahead, on real sockets: frames are complete and in order, however the network splits them."""

import socket
from collections.abc import Iterator
from struct import pack
from typing import Any

import pytest
from amqp.exceptions import UnexpectedFrame

from celery_kit import Kit
from celery_kit.brokers.rabbitmq.read_ahead import TCPTransport
from celery_kit.brokers.rabbitmq.transport import Transport

FRAMES = [(1, 0, b"method"), (2, 7, b""), (3, 65_535, bytes(range(256)) * 600)]


def wire(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    return pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


@pytest.fixture
def pair() -> Iterator[tuple[Any, socket.socket]]:
    """A transport, and the other end of its connection."""
    ours, theirs = socket.socketpair()
    transport: Any = TCPTransport("127.0.0.1:1")
    transport.sock, transport.connected = ours, True
    transport._setup_transport()
    yield transport, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [1, 7, 8, 1_000, 1_000_000])
def test_frames_are_complete_however_they_are_split(pair: tuple[Any, socket.socket], size: int) -> None:
    transport, theirs = pair
    data = b"".join(wire(*frame) for frame in FRAMES)
    seen = []
    while data:
        theirs.setblocking(False)
        data = data[theirs.send(data[:size]) :]
        while transport.read_now():
            while frame := transport.next_frame():
                seen.append(frame)
    assert seen == FRAMES
    assert not transport.buffered


def test_a_time_limit_in_the_middle_of_a_frame_loses_nothing(pair: tuple[Any, socket.socket]) -> None:
    transport, theirs = pair
    data = wire(*FRAMES[0])
    theirs.sendall(data[:9])
    transport.sock.settimeout(0.01)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            transport.read_frame()
    assert transport.connected
    theirs.sendall(data[9:])
    assert transport.read_frame() == FRAMES[0]


def test_reading_now_does_not_wait(pair: tuple[Any, socket.socket]) -> None:
    transport, _ = pair
    assert not transport.read_now()
    assert transport.sock.gettimeout() is None


@pytest.mark.parametrize("read", ["read_frame", "read_now"])
def test_the_end_of_a_connection_is_an_error(pair: tuple[Any, socket.socket], read: str) -> None:
    transport, theirs = pair
    theirs.close()
    with pytest.raises(OSError, match="closed connection"):
        getattr(transport, read)()
    assert not transport.connected


def test_a_frame_without_its_last_byte_is_an_error(pair: tuple[Any, socket.socket]) -> None:
    transport, theirs = pair
    theirs.sendall(wire(1, 0, b"method", end=0))
    with pytest.raises(UnexpectedFrame):
        transport.read_frame()


@pytest.mark.parametrize(("engine", "module"), [("plain", "transport"), ("fast", "fast_connection")])
def test_one_transport_serves_both_engines(engine: str, module: str) -> None:
    app = Kit("one", broker="amqp://127.0.0.1:1//", engine=engine, set_as_current=False)
    transport: Any = app.connection().transport
    assert type(transport) is Transport
    assert transport.Connection.__module__ == f"celery_kit.brokers.rabbitmq.{module}"
