"""Wakes a polling loop from any thread or greenlet, by a pair of sockets."""

import socket
from contextlib import suppress

from celery_kit.engine.parts import on


class WakeUp:
    """The loop polls it like a socket, and calls `drain` when it is readable. Any thread or greenlet may call `wake`."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        for end in (self._reader, self._writer):
            end.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Make it readable. Never blocks, and does nothing once it is closed."""
        if on("wake_up"):
            with suppress(OSError):  # the loop is being woken, or has ended
                self._writer.send(b"!")

    def drain(self) -> None:
        """Read what was written, so that it is readable only after the next :meth:`wake`."""
        with suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Close both sockets."""
        for end in (self._reader, self._writer):
            end.close()
