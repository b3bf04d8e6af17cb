"""BaseExceptions that tasks may raise, and exceptions that have a meaning for the worker's own code."""

import asyncio
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tests.compat.cases.basics import add
from tests.compat.side import app
from tests.harness.waiting import settled

#: More than a worker's concurrency, so that the test fails if one slot stays occupied.
MANY = 40
GIVE_UP = 20.0
OPEN = ("PENDING", "STARTED")


class OwnError(BaseException):
    """A task's own."""


def _of(module: str, name: str) -> Callable[[], BaseException]:
    return lambda: getattr(import_module(module), name)("why")


RAISED: dict[str, Callable[[], BaseException]] = {
    "cancelled": lambda: asyncio.CancelledError("why"),
    "own": lambda: OwnError("why"),
    "generator": lambda: GeneratorExit("why"),
    "memory": lambda: MemoryError("why"),
    "exit": lambda: SystemExit("why"),
    "interrupt": lambda: KeyboardInterrupt("why"),
    "shutdown": _of("celery.exceptions", "WorkerShutdown"),
    "greenlet": _of("greenlet", "GreenletExit"),
    "timeout": lambda: import_module("gevent").Timeout(5, "why"),
}


@app.task(name="raised.raises")
def raises(what: str) -> None:
    raise RAISED[what]()


@app.task(name="raised.note")
def note(request: Any, error: Any, traceback: Any) -> None:
    app.backend.store_result(f"{request.id}-errback", repr(type(error).__name__), "SUCCESS")


def ends(*whats: str) -> dict[str, Any]:
    """How many of MANY tasks that raise it ended in which state, and whether the worker then runs another task."""
    found: dict[str, Any] = {}
    for what in whats:
        sent = [raises.delay(what) for _ in range(MANY)]
        until = time.monotonic() + GIVE_UP
        for one in sent:
            look = app.AsyncResult(one.id)
            settled(lambda look=look: look.state, lambda state: state not in OPEN, until - time.monotonic())  # type: ignore[misc]
        known: dict[str, int] = {}
        for one in sent:
            state, error = one.state, one.result
            known[f"{state} {type(error).__name__}"] = known.get(f"{state} {type(error).__name__}", 0) + 1
        found[what] = known
    found["then"] = add.delay(1, 2).get(timeout=10)
    return found


def callbacks(what: str) -> Any:
    """An errback, and a chord whose member raises it."""
    from celery import chord

    one = raises.apply_async((what,), link_error=note.s())
    body = chord([add.s(1, 2), raises.s(what)], add.s(1)).apply_async()
    called = app.AsyncResult(f"{one.id}-errback").get(timeout=10)
    try:
        return called, body.get(timeout=10)
    except BaseException as error:
        return called, type(error).__name__
