"""The pool of processes. It keeps track of the tasks that its children have when a worker stops or loses its connection.

Celery 5.7.0 then forgets every job whose acceptance it has not read yet, including jobs that are in a child's pipe or run
already. These tasks run twice: their results are neither stored nor acknowledged, although the worker reports a warm shutdown.
And as no job seems to be left, nobody reads what the children send. Each child waits half a minute for that before it exits.
Source: celery/concurrency/asynpool.py, AsynPool.flush and ResultHandler.on_stop_not_started; billiard 4.3, pool.py,
_ensure_messages_consumed. https://github.com/celery/celery/pull/6863, https://github.com/celery/celery/issues/3796.
`Pool.flush` can go when tests/engine/test_prefork_stop.py::test_celery_still_forgets_what_its_children_have fails.
"""

from collections.abc import Generator
from typing import Protocol

from celery.concurrency import asynpool
from celery.concurrency.prefork import TaskPool

from celery_kit.base.types import Callback
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


class Pool(asynpool.AsynPool):
    """billiard's pool, in Celery's version for an event loop."""

    _cache: dict[int, Job]

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
