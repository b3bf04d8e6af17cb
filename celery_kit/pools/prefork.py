"""The pool of processes, which keeps the tasks that its children have when a worker stops or its connection is lost.

Celery 5.7.0 forgets each job then whose acceptance it has not read yet, those as well that are in a child's pipe by then, or
run. They run twice: their results are neither stored nor acknowledged, though the worker reports a warm shutdown. And as
nothing seems to be left, nobody reads what the children send; each waits for that for half a minute before it exits.
Source: celery/concurrency/asynpool.py, AsynPool.flush and ResultHandler.on_stop_not_started; billiard 4.3, pool.py,
_ensure_messages_consumed. https://github.com/celery/celery/pull/6863, https://github.com/celery/celery/issues/3796.
`Pool.flush` can go when tests/engine/test_prefork_stop.py::test_celery_still_forgets_what_its_children_have fails.
"""

from importlib import import_module
from typing import Any

from celery_kit.pools.in_children import InChildren

# celery-types know little of them.
asynpool: Any = import_module("celery.concurrency.asynpool")
prefork: Any = import_module("celery.concurrency.prefork")


def is_with_a_child(job: Any) -> bool:
    """A part of it has been written, at least. Its writer is gone when all has."""
    writer = asynpool._get_job_writer(job)
    return bool(job._write_to) and (writer is None or not asynpool.gen_not_started(writer))


class Pool(asynpool.AsynPool):  # type: ignore[misc]
    """billiard's pool, as Celery's event loop has it."""

    def flush(self) -> None:
        """Forget the jobs that no child has. Called when the worker stops, or has lost its connection."""
        held = [job for job in self._cache.values() if is_with_a_child(job)]
        for job in held:
            job.discard = bool  # does nothing
        try:
            super().flush()
        finally:
            for job in held:
                del job.discard
                if not job.ready():  # Celery 5.5 empties the cache where no writer is active
                    self._cache.setdefault(job._job, job)


class Prefork(InChildren, prefork.TaskPool):  # type: ignore[misc]
    """Celery's pool `prefork`."""

    Pool = Pool
