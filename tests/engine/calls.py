"""Counts a worker's calls of sockets and files: `celery worker -I tests.engine.calls`. At its exit they are in the file CALLS.

strace could count them too, but may be missing. Each process of the worker writes a line: its calls of sockets, files that it
opened or renamed, and its writes to files and pipes. The last is the kernel's count, wake-ups of a loop included. Delays of the
worker are longer here, and its throughput is that of its CPU time, so that also a slow or busy machine fills its batches.
"""

import os
import socket
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import process_time
from typing import Any

from celery import signals

from celery_kit.brokers.rabbitmq import fast_connection, window
from celery_kit.engine import commit, prefetch

NAMES = ("recv", "recv_into", "send", "sendall", "sendmsg")
asked, opened = count(), count()
before = [0, 0, 0]  # in a child: those of its parent before the fork


def counted(call: Callable[..., Any]) -> Callable[..., Any]:
    def ask(*args: Any, **options: Any) -> Any:
        next(asked)
        return call(*args, **options)

    return ask


def audited(event: str, _: tuple[object, ...]) -> None:
    if event in ("open", "os.rename"):
        next(opened)


def written() -> int:
    return int(Path("/proc/self/io").read_text().partition("syscw: ")[2].split()[0])


def begin(**_: Any) -> None:
    before[:] = next(asked), next(opened), 0  # the kernel counts for each process


def end(**_: Any) -> None:
    so_far = next(asked), next(opened), written()
    with Path(os.environ["CALLS"]).open("a") as file:
        file.write(" ".join(str(number - earlier) for number, earlier in zip(so_far, before, strict=True)) + "\n")


def total(path: Path, which: int = 0) -> int:
    """Of all processes of a worker that has exited: calls of sockets (0), files opened or renamed (1), writes to files (2)."""
    return sum(int(line.split()[which]) for line in path.read_text().splitlines())


if os.environ.get("CALLS"):
    Sockets: Any = socket.socket  # on a green pool, the patched class
    for name in [name for name in NAMES if hasattr(Sockets, name)]:
        setattr(Sockets, name, counted(getattr(Sockets, name)))
    sys.addaudithook(audited)
    commit.SECONDS = window.TURN = 1.0
    vars(fast_connection)["TURN"] = window.TURN
    vars(prefetch)["monotonic"] = process_time
    update: Any = prefetch.Throughput.update
    vars(prefetch)["Throughput"].update = lambda self, _: update(self, process_time())
    signals.worker_process_init.connect(begin)
    signals.worker_process_shutdown.connect(end)
    signals.worker_shutdown.connect(end)
