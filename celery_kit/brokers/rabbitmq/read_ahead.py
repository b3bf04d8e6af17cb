"""AMQP's frames, and py-amqp's sockets with fewer system calls: one read takes what has arrived, up to 64 KiB.

A message has three frames. py-amqp reads the seven bytes of a frame's header, its payload and its last byte one after the
other, and changes the socket's time limit around each frame. Source: amqp 5.4.2, transport.py.
"""

from __future__ import annotations

import socket
import threading
from ssl import SSLWantReadError
from struct import Struct
from typing import TYPE_CHECKING

from amqp.exceptions import UnexpectedFrame

if TYPE_CHECKING:
    from upstream import amqp as amqp_transport
    from upstream.amqp import SocketTransport

    from celery_kit.base.types import Callback
else:
    from amqp import transport as amqp_transport

    SocketTransport = object

#: The most bytes of one read.
AHEAD = 65_536
#: Kinds of frames.
METHOD, HEADER, BODY = 1, 2, 3
#: A frame's kind, channel and size before its payload, its last byte, and the bytes around its payload.
_start, END = Struct(">BHI"), 0xCE
OVERHEAD = _start.size + 1


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """A frame as it is sent."""
    return b"%b%b%c" % (_start.pack(kind, channel, len(payload)), payload, END)


class ReadAhead(SocketTransport):
    """Reads frames from a buffer. A frame stays in the buffer until it is complete, even if an error comes in between."""

    def _setup_transport(self) -> None:
        super()._setup_transport()
        self._data = b""
        self._at = 0
        self._write_lock = threading.Lock()
        self._write_all = self._write
        self._write = self._write_locked

    def _write_locked(self, data: bytes) -> None:
        # Acknowledgements are not written by py-amqp's frame writer, which has a lock.
        with self._write_lock:
            self._write_all(data)

    @property
    def buffered(self) -> bool:
        """Whether something was read that is not handled yet."""
        return len(self._data) > self._at

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """Type, channel and payload of the buffer's next frame; None if it is not complete. Raises UnexpectedFrame."""
        data, at = self._data, self._at
        if len(data) < at + OVERHEAD:
            return None
        kind, channel, size = _start.unpack_from(data, at)
        end = at + OVERHEAD + size
        if len(data) < end:
            return None
        if data[end - 1] != END:
            raise UnexpectedFrame(f"Received frame_end {data[end - 1]:#04x} while expecting {END:#04x}")
        self._at = end
        return kind, channel, data[at + _start.size : end - 1]

    def read_frame(self, unpack: Callback | None = None) -> tuple[int, int, bytes]:
        """The next frame. Raises TimeoutError after the socket's time limit, and OSError if the connection is lost."""
        while (frame := self.next_frame()) is None:
            try:
                self._take(self.sock.recv(AHEAD))
            except OSError as error:
                self._failed(error)
        return frame

    def read_now(self) -> bool:
        """Read what has arrived, without waiting. Returns whether there was something. Raises OSError."""
        try:
            self._take(self._receive_now())
        except (BlockingIOError, SSLWantReadError):
            return False
        except OSError as error:
            self._failed(error)
        return True

    def _receive_now(self) -> bytes:
        return bytes(self.sock.recv(AHEAD, socket.MSG_DONTWAIT))

    def _take(self, data: bytes) -> None:
        if not data:
            self.connected = False
            raise OSError("Server unexpectedly closed connection")
        self._data = self._data[self._at :] + data
        self._at = 0

    def _failed(self, error: OSError) -> None:
        # A TimeoutError with a number is TCP's own: the connection is lost.
        if (isinstance(error, TimeoutError) and not error.errno) or isinstance(error, BlockingIOError | SSLWantReadError):
            raise TimeoutError from error
        self.connected = False
        raise error


class TCPTransport(ReadAhead, amqp_transport.TCPTransport):
    """A plain socket."""


class SSLTransport(ReadAhead, amqp_transport.SSLTransport):
    """A TLS socket, which knows no flags: its time limit is changed during the read, while nobody else may write."""

    def _receive_now(self) -> bytes:
        with self._write_lock:
            limit = self.sock.gettimeout()
            self.sock.settimeout(0)
            try:
                return bytes(self.sock.recv(AHEAD))
            finally:
                self.sock.settimeout(limit)
