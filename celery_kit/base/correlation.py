"""A correlation name: a producer sets it, and every task that follows from its tasks inherits it.

    with correlation("order-7"):
        send("mail.send_email", ["a@b.c", "hi"])

The name is the message's header `correlation`; chains, groups, chords and retries inside a task inherit it. Without one, the
logs show Celery's root id, which is inherited the same way. The header `sent`, in seconds since the epoch, gives the age of a
waiting message. `celery_kit/produce/publishing.py` sets both headers.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from celery._state import get_current_worker_task

from celery_kit.base.types import Headers

HEADER = "correlation"
SENT = "sent"

_given: ContextVar[str | None] = ContextVar("correlation", default=None)


@contextmanager
def correlation(name: str) -> Iterator[None]:
    """Name every task that is sent in this context, by this thread, greenlet or coroutine."""
    token = _given.set(name)
    try:
        yield
    finally:
        _given.reset(token)


def given() -> str | None:
    """The name that this context has set, or None."""
    return _given.get()


def current() -> str | None:
    """The name that a task sent now would get: the context's, or else the running task's. None if neither has one."""
    if given := _given.get():
        return given
    task = get_current_worker_task()
    return getattr(task.request, HEADER, None) if task else None


def now() -> float:
    """The header `sent` of a task that is sent now, in seconds since the epoch."""
    return round(time.time(), 3)


def named(headers: Headers | None) -> Headers:
    """A copy of a message's headers, with `sent` and `correlation`. All messages of one `send_many` share the two."""
    given = dict(headers or ())
    given[SENT] = now()
    if HEADER not in given and (name := current()):
        given[HEADER] = name
    return given
