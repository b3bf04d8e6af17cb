"""What wakes a loop that polls: a pair of sockets, rung in any thread or greenlet."""

import socket
from contextlib import suppress

from celery_kit.engine.parts import on


class Bell:
    """The loop polls it as it does a socket, and `hear`s it once it is readable."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        for end in (self._heard, self._rung):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._heard.fileno()

    def ring(self) -> None:
        if on("wake_up"):
            with suppress(OSError):  # it rings already, or its loop is gone
                self._rung.send(b"!")

    def hear(self) -> None:
        with suppress(BlockingIOError):
            self._heard.recv(4096)

    def close(self) -> None:
        for end in (self._heard, self._rung):
            end.close()
