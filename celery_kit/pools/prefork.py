"""The pool of processes. It keeps track of the tasks that its children have when a worker stops or loses its connection, and
waits neither for a lock of a child that was killed, nor long for its successor.

Celery 5.7.0 then forgets every job whose acceptance it has not read yet, including jobs that are in a child's pipe or run
already. These tasks run twice: their results are neither stored nor acknowledged, although the worker reports a warm shutdown.
And as no job seems to be left, nobody reads what the children send. Each child waits half a minute for that before it exits.
Source: celery/concurrency/asynpool.py, AsynPool.flush and ResultHandler.on_stop_not_started; billiard 4.3, pool.py,
_ensure_messages_consumed. https://github.com/celery/celery/pull/6863, https://github.com/celery/celery/issues/3796.
`Pool.flush` can go when tests/engine/test_prefork_stop.py::test_celery_still_forgets_what_its_children_have fails.

billiard counts the results of each child that it has read, under a lock that it shares with the child. A child that is killed
while it has the lock, by a time limit or for its memory, never gives it back, and the worker waits for it without end.
Source: billiard 4.3, pool.py, ResultHandler.on_ready and Worker._ensure_messages_consumed. :class:`ReadCounter` can go when
tests/engine/test_prefork_stop.py::test_celery_still_waits_for_a_lock_of_a_dead_child fails.

The kernel closes the pipe that tells of a child's end a moment before the child can be reaped. Celery looks just once, at that
moment, and then every 5 s: so long the pool may lack a child after each time limit. Source: celery/concurrency/asynpool.py
5.7.0, AsynPool._event_process_exit. The kit's can go when tests/unit/pools/test_prefork.py::test_celery_still_looks_once fails.
"""

import time
from collections.abc import Generator
from contextlib import nullcontext
from ctypes import c_int
from typing import Protocol

from celery.concurrency import asynpool
from celery.concurrency.prefork import TaskPool

from celery_kit.base.types import Callback, EventLoop
from celery_kit.pools.in_children import InChildren


class Job(Protocol):
    """A task in the pool: billiard.pool.ApplyResult. `_job`: its number; `_write_to`: the child that it is written to."""

    _job: int
    _write_to: object
    discard: Callback

    def ready(self) -> bool:
        """Whether its outcome is there."""


_celerys = vars(asynpool)  # the stubs lack its functions


def is_with_a_child(job: Job) -> bool:
    """Whether at least a part of the job has been written to its child. It has no writer once all of it has."""
    writer: Generator[object, None, None] | None = _celerys["_get_job_writer"](job)
    return bool(job._write_to) and (writer is None or not _celerys["gen_not_started"](writer))


class Counter(Protocol):
    """A number that is shared with a child: billiard.sharedctypes.Synchronized."""

    def get_obj(self) -> c_int: ...


class ReadCounter:
    """How many results of a child have been read. Only this process writes it, and so it needs no lock."""

    get_lock = nullcontext

    def __init__(self, shared: Counter) -> None:
        self._number = shared.get_obj()

    @property
    def value(self) -> int:
        return self._number.value

    @value.setter
    def value(self, value: int) -> None:
        self._number.value = value


class Child(Protocol):
    """billiard.process.BaseProcess."""

    pid: int
    exitcode: int | None


#: Seconds that a child may take from the end of its pipe to its own.
REAPED = 0.05


class Pool(asynpool.AsynPool):
    """billiard's pool, in Celery's version for an event loop."""

    _cache: dict[int, Job]
    _on_ready_counters: dict[int, Counter | ReadCounter]

    def _create_worker_process(self, i: int) -> Child:
        child: Child = super()._create_worker_process(i)  # type: ignore[misc]
        if hasattr(counter := self._on_ready_counters[child.pid], "get_obj"):
            self._on_ready_counters[child.pid] = ReadCounter(counter)
        return child

    def _event_process_exit(self, hub: EventLoop, proc: Child) -> None:
        """Replace a child whose pipe was closed, once it can be reaped."""
        latest = time.monotonic() + REAPED
        while proc.exitcode is None and time.monotonic() < latest:
            time.sleep(0.001)  # until the kernel has ended it, for which there is no event
        super()._event_process_exit(hub, proc)  # type: ignore[misc]

    def flush(self) -> None:
        """Forget the jobs that no child has. Celery calls it when the worker stops or has lost its connection."""
        held = [job for job in self._cache.values() if is_with_a_child(job)]
        for job in held:
            job.discard = bool  # does nothing
        try:
            super().flush()
        finally:
            for job in held:
                del job.discard
                if not job.ready():  # Celery 5.5 empties the cache if no writer is active
                    self._cache.setdefault(job._job, job)


class Prefork(InChildren, TaskPool):
    """Celery's pool `prefork`."""

    Pool = Pool
