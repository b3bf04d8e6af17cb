"""How a client waits for results: in threads, on greenlets, in forked children, and after an abandoned wait."""

import signal
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import chord, group
from celery.exceptions import ChordError, TaskRevokedError
from celery.exceptions import TimeoutError as NoResult

from tests.compat.cases.basics import add
from tests.compat.side import SIDE, app
from tests.harness.waiting import until

#: Seconds after which a missing result counts as lost.
PATIENCE = 20.0


def _values(results: Sequence[Any]) -> list[Any]:
    """The results in order; "lost" for each that does not arrive."""
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
    """Send tasks from many threads, and wait for all results in this one. Returns what is wrong."""
    with ThreadPoolExecutor(threads) as pool:
        return _wrong(_values(list(pool.map(_send, range(tasks)))))


def awaited_by_the_threads_that_send(threads: int, tasks: int) -> Any:
    """Each thread waits for its own results, as in a threaded web server."""
    with ThreadPoolExecutor(threads) as pool:
        return _wrong(list(pool.map(lambda number: _values([_send(number)])[0], range(tasks))))


def handed_to_another_thread(tasks: int) -> Any:
    """One thread sends, another one waits. The waiting one has waited for other results before."""
    first = _values([_send(0)])
    with ThreadPoolExecutor(1) as sender, ThreadPoolExecutor(1) as waiter:
        sent = list(sender.map(_send, range(tasks)))
        return _wrong(first) + _wrong(waiter.submit(_values, sent).result())


def spooled_by_threads(threads: int, tasks: int) -> Any:
    """For the kit: tasks are in the spool until the broker is available, and the spool's thread sends them."""

    def accept(number: int) -> Any:
        options = {"task_id": uuid4().hex}
        return app.spooled.accept(add.name, (number, 1), {}, None, None, options)

    with ThreadPoolExecutor(threads) as pool:
        return _wrong(_values(list(pool.map(accept, range(tasks)))))


def first_on_greenlets() -> Any:
    """The first result of a process (PATCHED), waited for without a timeout: only the result ends the wait."""
    consumer = app.backend.result_consumer
    drain = consumer.drain_events
    consumer.drain_events = lambda timeout=None: drain(timeout=timeout and 3600)
    return _values([add.delay(1, 2)])


@app.task(name="compat.when")
def when(path: str, value: Any) -> Any:
    """Run until the file exists."""
    until("there is such a file", Path(path).exists, 50)
    return value


class Interrupted(BaseException):
    """Raised from outside to end a wait."""


def _interrupt(*_: Any) -> None:
    raise Interrupted


def _interrupted(result: Any) -> None:
    signal.signal(signal.SIGALRM, _interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    result.get(timeout=PATIENCE)


def _given_up_in_another_thread(result: Any) -> None:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(result.get, timeout=0.5).result()


def _iterated(result: Any) -> None:
    for _ in result.iter_native(timeout=0.5):
        pass


GIVING_UP = {
    "iteration": _iterated,
    "timeout": lambda result: result.get(timeout=0.5),
    "no_time": lambda result: result.get(timeout=0),
    "interrupt": _interrupted,
    "another_thread": _given_up_in_another_thread,
}


def _left() -> int:
    """The results to which this process is still subscribed."""
    backend = app.backend
    subscribed = getattr(backend.result_consumer, "subscribed_to", ())
    return sum(map(len, backend._pending_results)) + len(subscribed)


def gives_up(folder: str, how: str, members: int = 0) -> Any:
    """What remains of an abandoned wait, the result after the task has ended, and what remains then."""
    path = str(Path(folder) / SIDE)
    result = group(when.s(path, number) for number in range(members)).delay() if members else when.delay(path, 0)
    try:
        GIVING_UP[how](result)
    except (NoResult, Interrupted):
        given_up = _left()
    Path(path).touch()
    return {"left": given_up, "value": result.get(timeout=PATIENCE), "then": _left()}


def gives_up_beside_another(folder: str) -> Any:
    """Two waits for one result, of which one is abandoned."""
    path = str(Path(folder) / SIDE)
    result = when.delay(path, 0)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(_values, [result])
        try:
            result.get(timeout=0.5)
        except NoResult:
            Path(path).touch()
        return other.result()


def gives_up_what_is_to_be_called(folder: str) -> Any:
    """A callback for a result is called, although a wait for the same result was abandoned."""
    path = str(Path(folder) / SIDE)
    called: list[Any] = []
    result = when.delay(path, 0)
    result.then(lambda one: called.append(one.get()))
    try:
        result.get(timeout=0.5)
    except NoResult:
        Path(path).touch()
    _values([add.delay(1, 1)])
    deadline = time.monotonic() + PATIENCE
    while not called and time.monotonic() < deadline:
        _values([add.delay(1, 1)])  # a wait receives all results to which the process is subscribed
    return called


def expired(members: int = 0) -> Any:
    """A task that expires in a queue without consumers. `members`: a chord of such tasks."""
    options = {"queue": f"nobody-{uuid4().hex[:8]}", "expires": 0.5}
    result = add.apply_async((1, 1), **options)
    if members:
        result = chord([add.s(1, 1).set(**options) for _ in range(members)])(add.si(0, 0))
    try:
        return result.get(timeout=PATIENCE)
    except (NoResult, TaskRevokedError, ChordError) as error:
        return [type(error).__name__, result.state]


def many_expired(tasks: int) -> Any:
    """The states of tasks that expire together, and the result of one that is sent after them."""
    options = {"queue": f"nobody-{uuid4().hex[:8]}", "expires": 0.5}
    sent = [add.apply_async((1, 1), **options) for _ in range(tasks)]
    for one in sent:
        one.get(timeout=PATIENCE, propagate=False)
    return [sorted({one.state for one in sent}), _values([add.delay(1, 1)])]
