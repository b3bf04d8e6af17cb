"""Ports of this machine that are free."""

import socket
from contextlib import ExitStack


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
