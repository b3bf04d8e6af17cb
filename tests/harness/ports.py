"""Ports of this machine that are free."""

import random
import socket
from contextlib import ExitStack, suppress


def free_ports(number: int) -> list[int]:
    """Different ports on which no process listens."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def free_port() -> int:
    """A port on which no process listens."""
    return free_ports(1)[0]


def server_port() -> int:
    """A port on which no process listens, for a server that a test stops: none of those that the kernel gives to clients.

    One of these could be a client's by the time that the server starts again, even of a client that connects to itself.
    """
    for port in random.sample(range(16_384, 32_768), 100):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")
