"""Counts what a worker asks of its sockets: `celery worker -I tests.engine.calls`; CALLS names the file that has it at its end.

strace would say it too, where there is one. Each process of the worker writes a line. The worker has time here: a group that a
slow machine does not fill in a few milliseconds is no worse for it.
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
before = 0  # of a child: what its parent had asked


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
    """What all processes of a worker that has ended asked."""
    return sum(map(int, path.read_text().split()))


if os.environ.get("CALLS"):
    Sockets: Any = socket.socket  # a green pool's, by now
    for name in [name for name in NAMES if hasattr(Sockets, name)]:
        setattr(Sockets, name, counted(getattr(Sockets, name)))
    commit.SECONDS = window.TURN = 1.0
    vars(fast_connection)["TURN"] = window.TURN
    signals.worker_process_init.connect(begin)
    signals.worker_process_shutdown.connect(end)
    signals.worker_shutdown.connect(end)
