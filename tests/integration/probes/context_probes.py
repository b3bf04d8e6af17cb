"""Probes of what surrounds a task: sockets, the process, its neighbours, its context."""

import os
import socket
import time
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from celery import Task, current_task, shared_task

word: ContextVar[str] = ContextVar("word", default="fresh")


@shared_task
def socket_module() -> str:
    """Where sockets come from: the standard library, or a pool's patch."""
    return socket.socket.__module__


@shared_task(bind=True)
def meet(self: Task[Any, Any], place: str, number: int, seconds: float) -> int:
    """Wait until `number` tasks are here at the same time, at most so many seconds; gives how many were."""
    folder = Path("/data/meet") / place
    folder.mkdir(parents=True, exist_ok=True)
    mine = folder / str(self.request.id)
    mine.touch()
    deadline = time.monotonic() + seconds
    while (here := len(list(folder.iterdir()))) < number and time.monotonic() < deadline:
        time.sleep(0.02 + number / 500)  # each looks at all: a crowd looks less often
    (Path("/data/met") / place).mkdir(parents=True, exist_ok=True)
    (Path("/data/met") / place / f"{self.request.id}.{here}").touch()
    if here < number:  # nobody leaves before all had the chance to count
        mine.unlink()
    return here


@shared_task(bind=True)
def remember(self: Task[Any, Any], own: str) -> list[str]:
    """The context variable before it is set, and after a wait in which other tasks ran; and whose task this thread runs."""
    before = word.get()
    word.set(own)
    time.sleep(0.3)  # the work: a pool that runs tasks side by side runs the others meanwhile
    return [before, word.get(), str(self.request.id), str(current_task.request.id)]


@shared_task
def compute(seconds: float) -> list[float]:
    """Burn CPU; gives the process, and when on the machine's clock it began and ended."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        sum(range(2_000))
    return [os.getpid(), began, time.monotonic()]
