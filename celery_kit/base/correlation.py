"""One name for all the work that a request brings about: a producer gives it, every task that follows from its tasks has it.

    with correlation("order-7"):
        send("mail.send_email", ["a@b.c", "hi"])

It goes as the header `correlation` of the message; inside a task, chains, groups, chords and retries take it on. Where nobody
gave one, the logs show Celery's own root id in its place, which follows the same way. `sent`, seconds since the epoch, goes
beside it: the age of what waits in a queue. `celery_kit/produce/publishing.py` puts both there.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from celery._state import get_current_worker_task

HEADER = "correlation"
SENT = "sent"

_given: ContextVar[str | None] = ContextVar("correlation", default=None)


@contextmanager
def correlation(name: str) -> Iterator[None]:
    """Give `name` to every task that is sent in this context, from this thread, greenlet or coroutine."""
    token = _given.set(name)
    try:
        yield
    finally:
        _given.reset(token)


def given() -> str | None:
    """The name that the context gives."""
    return _given.get()


def current() -> str | None:
    """The name that a task sent now would have: that of the context, or of the task that runs; None where neither has one."""
    if given := _given.get():
        return given
    task = get_current_worker_task()
    return getattr(task.request, HEADER, None) if task else None


def now() -> float:
    """What the header `sent` says of a task that is sent now."""
    return round(time.time(), 3)


def named(headers: dict[str, Any] | None) -> dict[str, Any]:
    """A message's own headers with both; they are the same for all messages of one `send_many`."""
    given = dict(headers or ())
    given[SENT] = now()
    if HEADER not in given and (name := current()):
        given[HEADER] = name
    return given
