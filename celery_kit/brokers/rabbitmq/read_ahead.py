"""py-amqp's sockets with fewer system calls: a read takes what is there, up to 64 KiB.

py-amqp reads a frame's seven bytes, its payload and its end one by one, three frames a message, and changes the socket's time
limit around each. Source: amqp 5.4.2, transport.py.
"""

import socket
import threading
from ssl import SSLWantReadError
from struct import unpack_from
from typing import Any

from amqp import transport as amqp_transport
from amqp.exceptions import UnexpectedFrame

from celery_kit.brokers.rabbitmq.frames_in import END, OVERHEAD

#: Read at once, in bytes.
AHEAD = 65_536


class ReadAhead:
    """Frames out of a buffer of its own. A frame stays there until it is complete, whatever happens in between."""

    sock: Any
    connected: bool
    _write: Any

    def _setup_transport(self) -> None:
        super()._setup_transport()  # type: ignore[misc]
        self._data = b""
        self._at = 0
        self._write_lock = threading.Lock()
        self._write_all = self._write
        self._write = self._write_locked

    def _write_locked(self, data: Any) -> None:
        # Acknowledgements do not pass py-amqp's frame writer, and its lock.
        with self._write_lock:
            self._write_all(data)

    @property
    def buffered(self) -> bool:
        """Something has been read that is not handled yet."""
        return len(self._data) > self._at

    def next_frame(self) -> tuple[int, int, bytes] | None:
        """Type, channel and payload of the buffer's next frame; None where it is not complete."""
        data, at = self._data, self._at
        if len(data) < at + OVERHEAD:
            return None
        kind, channel, size = unpack_from(">BHI", data, at)
        end = at + OVERHEAD + size
        if len(data) < end:
            return None
        if data[end - 1] != END:
            raise UnexpectedFrame(f"Received frame_end {data[end - 1]:#04x} while expecting {END:#04x}")
        self._at = end
        return kind, channel, data[at + 7 : end - 1]

    def read_frame(self, unpack: Any = None) -> tuple[int, int, bytes]:
        """The next frame; waits for it as long as the socket's time limit says. Raises socket.timeout then."""
        while (frame := self.next_frame()) is None:
            try:
                self._take(self.sock.recv(AHEAD))
            except OSError as error:
                self._failed(error)
        return frame

    def read_now(self) -> bool:
        """Read what is there, without waiting; False where nothing is."""
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
        # A TimeoutError with a number is TCP's: it has given the connection up.
        if (isinstance(error, TimeoutError) and not error.errno) or isinstance(error, BlockingIOError | SSLWantReadError):
            raise TimeoutError from error
        self.connected = False
        raise error


class TCPTransport(ReadAhead, amqp_transport.TCPTransport):
    """Plain."""


class SSLTransport(ReadAhead, amqp_transport.SSLTransport):
    """TLS, whose sockets know no flags: the time limit is changed for the read alone, while nobody else writes."""

    def _receive_now(self) -> bytes:
        with self._write_lock:
            limit = self.sock.gettimeout()
            self.sock.settimeout(0)
            try:
                return bytes(self.sock.recv(AHEAD))
            finally:
                self.sock.settimeout(limit)
