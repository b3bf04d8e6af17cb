"""A process that forks after sending tasks and waiting for results. Parent and children then do both again."""

import json
import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

from tests.compat.cases import results
from tests.compat.cases.basics import add
from tests.compat.side import SIDE, app


def _one_by_one(rounds: int) -> list[Any]:
    """Send tasks and wait for each. Returns what is wrong with their results."""
    return [value for _ in range(rounds) for value in results._wrong(results._values([results._send(0)]))]


def _many(rounds: int) -> list[Any]:
    """The same with tasks that are sent together."""
    if SIDE == "celery":
        return _one_by_one(rounds)
    from celery_kit.produce.send import send_many

    ids = send_many(add.name, [(number, 1) for number in range(rounds)])
    return results._wrong(results._values([app.AsyncResult(one) for one in ids]))


def _asked(_: int) -> list[Any]:
    """Query a worker. The answer has to reach the process that asked."""
    return [] if app.control.ping(timeout=10, limit=1) else ["no answer"]


def _known(result: Any) -> list[Any]:
    """Tasks that were sent before the fork."""
    return results._wrong(results._values([result]))


def _fork(work: Callable[[], list[Any]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        return pid, reader
    try:
        found: Sequence[Any] = work()
    except BaseException as error:
        found = [repr(error)]
    os.write(writer, json.dumps(found, default=repr).encode())
    os._exit(0)


def _outcome(pid: int, reader: int, deadline: float) -> Any:
    ready, _, _ = select.select([reader], [], [], max(deadline - time.monotonic(), 0.1))
    if not ready:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return json.loads(os.read(reader, 65536)) if ready else "hangs"


WAYS: dict[str, Callable[[int], list[Any]]] = {"one_by_one": _one_by_one, "many": _many, "asked": _asked}


def forks(way: str, children: int, rounds: int, threads: int = 0, before: bool = False) -> Any:
    """What is wrong in the parent, its threads, and each of its children. `threads`: how many threads send during the fork.

    `before`: parent and children wait for tasks that the parent sent before the fork.
    """
    wrong = WAYS[way](1)
    work: Callable[[], list[Any]] = partial(_known, results._send(0)) if before else partial(WAYS[way], rounds)
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(max(threads, 1)))
        at_it = [pool.submit(WAYS[way], rounds) for _ in range(threads)]
        forked = [_fork(work) for _ in range(children)]
        wrong += work() + [one for each in at_it for one in each.result()]
        wrong += WAYS[way](rounds)
    deadline = time.monotonic() + results.PATIENCE
    return [wrong, *(_outcome(*child, deadline) for child in forked)]


def spooled(children: int) -> Any:
    """For the kit: children that are forked while the parent's spool is being sent. They spool tasks, too."""

    def accept(number: int) -> Any:
        return app.spooled.accept(add.name, (number, 1), {}, None, None, {"task_id": os.urandom(8).hex()})

    def work() -> list[Any]:
        return results._wrong(results._values([accept(number) for number in range(5)]))

    sent = [accept(number) for number in range(20)]
    forked = [_fork(work) for _ in range(children)]
    wrong = results._wrong(results._values(sent)) + work()
    deadline = time.monotonic() + results.PATIENCE
    return [wrong, *(_outcome(*child, deadline) for child in forked)]
