"""Wakes a polling loop from any thread or greenlet, by a pair of sockets."""

import socket
from contextlib import suppress

from celery_kit.engine.parts import on


class Bell:
    """The loop polls it like a socket, and calls `hear` when it is readable; `ring` wakes the loop."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        for end in (self._heard, self._rung):
            end.setblocking(False)

    def fileno(self) -> int:
        return self._heard.fileno()

    def ring(self) -> None:
        if on("wake_up"):
            with suppress(OSError):  # the loop is being woken, or has ended
                self._rung.send(b"!")

    def hear(self) -> None:
        with suppress(BlockingIOError):
            self._heard.recv(4096)

    def close(self) -> None:
        for end in (self._heard, self._rung):
            end.close()
