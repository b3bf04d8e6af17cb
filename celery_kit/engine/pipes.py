"""prefork's pipes between the worker and its child processes, with half of the system calls.

billiard writes a job's length and then the job, and reads each message of a child in the same two steps. Celery's loop
registers the pipe again after each message. Here a small job is one write, which is atomic, and one read takes all that a child
has sent. A large job, and a message that arrives in pieces, are handled as by Celery. A child that reports its task's end gets
the next one at once: Celery's loop first asks, in another round, whether the pipe can be written, as a free child's always can.
Source: celery/concurrency/asynpool.py 5.7.0, ResultHandler._make_process_result, _write_job, _create_write_handlers; billiard
4.3, pool.py.
"""

import errno
import os
import pickle
import select
from collections.abc import Callable, Iterator
from struct import unpack_from
from typing import Any, Protocol

from celery_kit.base.processes import clock
from celery_kit.base.signals import worker_init
from celery_kit.base.types import EventLoop, Worker
from celery_kit.engine.parts import on
from celery_kit.pools.table import row

UNAVAIL = (errno.EAGAIN, errno.EINTR)
#: Bytes that are read at once.
AHEAD = 65_536
#: The size of a message's length, in bytes.
_LENGTH = 4
#: Seconds since the loop's last round after which a free child waits for the next round. The process may have been stopped, and
#: its tasks may be others' by now: the loop finds that out first (celery_kit/brokers/redis/leases.py).
FRESH = 1.0
PIPE_BUF: int = getattr(select, "PIPE_BUF", 0)  # none on Windows, where there is no prefork


class Job(Protocol):
    """A task that billiard's pool runs: billiard.pool.ApplyResult."""

    #: What is written to the child: its length, itself, and the number that the length says.
    _payload: tuple[bytes | memoryview, bytes | memoryview, int] | None


def in_one_write(job: Job | None) -> None:
    """Join a job that is about to be sent with its length, if a write of both is atomic (pipe(7), PIPE_BUF)."""
    payload = getattr(job, "_payload", None) if on("pipes") else None  # a pool that is closing gives no job
    header, body, size = payload or (b"", b"", PIPE_BUF)
    if job and 0 < size <= PIPE_BUF - _LENGTH:
        job._payload = memoryview(bytes(header) + bytes(body)), body, 0


def messages(data: bytes) -> tuple[list[bytes], bytes]:
    """The pickled messages of a child, and the beginning of one that is incomplete."""
    found, at = [], 0
    while len(data) - at >= _LENGTH:
        end = at + _LENGTH + unpack_from(">i", data, at)[0]
        if len(data) < end:
            break
        found.append(data[at + _LENGTH : end])
        at = end
    return found, data[at:]


def rest(fd: int, begun: bytes, take: Callable[[object], None], again: Callable[[], None]) -> Iterator[None]:
    """Read the rest of a message as it arrives. A generator, as asynpool has for a message in pieces.

    `begun`: what was read of it. `take(message)` is called with the message, after `again()`. Raises OSError.
    """
    while True:
        whole = _LENGTH + (unpack_from(">i", begun)[0] if len(begun) >= _LENGTH else 0)
        if not (missing := whole - len(begun)) and whole > _LENGTH:
            break
        try:
            data = os.read(fd, missing)
        except OSError as error:
            if error.errno not in UNAVAIL:
                raise
            yield
            continue
        if not data:
            raise OSError("End of file during message")
        begun += data
    again()
    _take_all([begun[_LENGTH:]], take)


def result_handler(celerys: type) -> type:
    """A subclass of asynpool's ResultHandler whose reader takes all that has arrived."""
    base: Any = celerys

    class ResultHandler(base):  # type: ignore[misc]
        #: Writes waiting jobs to free children; set by the pool.
        write_next: Callable[[], object] = bool

        def _make_process_result(self, hub: EventLoop) -> Callable[[int], None]:
            children, take = self.fileno_to_outq, self.on_state_change

            def on_readable(fd: int) -> None:
                if fd not in children:  # process gone
                    hub.remove_reader(fd)
                    return
                try:
                    data = os.read(fd, AHEAD)
                except OSError as error:
                    if error.errno not in UNAVAIL:
                        hub.remove_reader(fd)
                    return
                if not data:
                    hub.remove_reader(fd)
                    return
                found, begun = messages(data)
                if begun:
                    go_on = rest(fd, begun, take, lambda: hub.add_reader(fd, self.handle_event, fd))
                    hub.add_reader(fd, go_on)
                try:
                    _take_all(found, take)
                finally:
                    self.write_next()

            return on_readable

    return ResultHandler


def async_pool(celerys: type) -> type:
    """A subclass of asynpool's AsynPool, with the reader above."""

    class Pool(celerys):  # type: ignore[misc]
        ResultHandler = result_handler(celerys.ResultHandler)  # type: ignore[attr-defined]

        def _create_write_handlers(self, hub: EventLoop, *args: object, **options: object) -> None:
            super()._create_write_handlers(hub, *args, **options)
            waiting, write = self.outbound_buffer, hub.consolidate_callback

            self._tick()
            hub.on_tick.add(self._tick)

            def write_next() -> None:
                if (
                    waiting
                    and clock() < self._ticked + FRESH
                    and (free := self._all_inqueues - self._active_writes - self._busy_workers)
                ):
                    write(list(free))

            self._result_handler.write_next = write_next

        def _tick(self) -> None:
            self._ticked = clock()

    return Pool


def _take_all(found: list[bytes], take: Callable[[object], None]) -> None:
    """Take each message, also after one of them raises: a task may stop the worker, and the others must not be lost."""
    for number, pickled in enumerate(found):
        try:
            if message := pickle.loads(pickled):
                take(message)
        except BaseException:
            _take_all(found[number + 1 :], take)
            raise


def connect() -> None:
    """Have every prefork worker of ENGINE=fast use these pipes."""
    worker_init.connect(_install, weak=False)


def _install(sender: Worker, **_: object) -> None:
    kind: Any = sender.pool_cls  # a class by now: celery_kit/pools/table.py
    pool = row(kind)
    if sender.app.conf.engine == "fast" and pool and pool.has_children and on("pipes"):
        about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
        sender.pool_cls = type(kind.__name__, (kind,), about | {"Pool": async_pool(kind.Pool)})
