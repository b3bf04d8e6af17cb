"""Counts a worker's calls of its sockets: `celery worker -I tests.engine.calls`. At its exit they are in the file CALLS.

strace could count them too, but may be missing. Each process of the worker writes a line. Delays of the worker are longer here,
so that also a slow machine fills its batches.
"""

import os
import socket
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from celery import signals

from celery_kit.brokers.rabbitmq import fast_connection, window
from celery_kit.engine import commit

NAMES = ("recv", "recv_into", "send", "sendall", "sendmsg")
asked = count()
before = 0  # in a child: calls of its parent before the fork


def counted(call: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **options: Any) -> Any:
        next(asked)
        return call(*args, **options)

    return ask


def begin(**_: Any) -> None:
    global before
    before = next(asked)


def end(**_: Any) -> None:
    with Path(os.environ["CALLS"]).open("a") as file:
        file.write(f"{next(asked) - before}\n")


def total(path: Path) -> int:
    """The calls of all processes of a worker that has exited."""
    return sum(map(int, path.read_text().split()))


if os.environ.get("CALLS"):
    Sockets: Any = socket.socket  # on a green pool, the patched class
    for name in [name for name in NAMES if hasattr(Sockets, name)]:
        setattr(Sockets, name, counted(getattr(Sockets, name)))
    commit.SECONDS = window.TURN = 1.0
    vars(fast_connection)["TURN"] = window.TURN
    signals.worker_process_init.connect(begin)
    signals.worker_process_shutdown.connect(end)
    signals.worker_shutdown.connect(end)
