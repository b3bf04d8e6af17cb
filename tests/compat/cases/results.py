"""How a client waits for results: in threads, on greenlets, in forked children, and once it has given up."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from celery.exceptions import TimeoutError as NoResult

from tests.compat.cases.basics import add
from tests.compat.side import app

#: Seconds after which all that has not come counts as lost.
PATIENCE = 20.0


def _values(results: Sequence[Any]) -> list[Any]:
    """What each gives, in its order; "lost" for what does not come."""
    deadline, values = time.monotonic() + PATIENCE, []
    for one in results:
        try:
            values.append(one.get(timeout=max(deadline - time.monotonic(), 0.1)))
        except NoResult:
            values.append("lost")
    return values


def _wrong(values: Sequence[Any]) -> list[Any]:
    return [(number, value) for number, value in enumerate(values) if value != number + 1]


def _send(number: int) -> Any:
    return add.delay(number, 1)


def sent_by_threads(threads: int, tasks: int) -> Any:
    """Tasks that many threads send, and this one waits for; gives what is not as it should be."""
    with ThreadPoolExecutor(threads) as pool:
        return _wrong(_values(list(pool.map(_send, range(tasks)))))


def awaited_by_the_threads_that_send(threads: int, tasks: int) -> Any:
    """As a threaded web server does it."""
    with ThreadPoolExecutor(threads) as pool:
        return _wrong(list(pool.map(lambda number: _values([_send(number)])[0], range(tasks))))


def handed_to_another_thread(tasks: int) -> Any:
    """One thread sends, another one waits; this one has waited before."""
    first = _values([_send(0)])
    with ThreadPoolExecutor(1) as sender, ThreadPoolExecutor(1) as waiter:
        sent = list(sender.map(_send, range(tasks)))
        return _wrong(first) + _wrong(waiter.submit(_values, sent).result())


def spooled_by_threads(threads: int, tasks: int) -> Any:
    """The kit's: tasks that wait on the disk for the broker, and are sent by a thread of their own."""

    def accept(number: int) -> Any:
        options = {"task_id": uuid4().hex}
        return app.spooled.accept(add.name, (number, 1), {}, None, None, options)

    with ThreadPoolExecutor(threads) as pool:
        return _wrong(_values(list(pool.map(accept, range(tasks)))))
