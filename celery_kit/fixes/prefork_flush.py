"""prefork forgets tasks that its children have, and they run twice.

When a worker stops, or its connection is lost, Celery 5.7.0 lets go of each job whose acceptance it has not read yet - of those
too that are in a child's pipe by then, or run. Their results are thrown away: they are neither stored nor acknowledged, though
the worker says that it ends in peace. And as nothing seems to be left, nobody reads what the children say; each waits for that,
half a minute long, before it ends.
Source: celery/concurrency/asynpool.py, AsynPool.flush and ResultHandler.on_stop_not_started; billiard 4.3, pool.py,
_ensure_messages_consumed. https://github.com/celery/celery/pull/6863, https://github.com/celery/celery/issues/3796.

Closed by keeping what a child has, or has a part of. Can go when
tests/engine/test_prefork_stop.py::test_celery_still_forgets_what_its_children_have fails.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from celery_kit.base.signals import celeryd_init
from celery_kit.pools.table import chosen


def connect() -> None:
    """Have every worker on prefork keep what its children have."""
    celeryd_init.connect(_install, weak=False)


def _install(conf: Any, options: dict[str, Any], **_: Any) -> None:
    if chosen(conf, options).uses_semaphore:
        asynpool: Any = import_module("celery.concurrency.asynpool")
        asynpool.AsynPool.flush = _keeping(asynpool.AsynPool.flush, asynpool)


def _keeping(celerys: Callable[[Any], None], asynpool: Any) -> Callable[[Any], None]:
    def flush(self: Any) -> None:
        held = [job for job in self._cache.values() if is_with_a_child(job)]
        for job in held:
            job.discard = bool  # does nothing
        try:
            celerys(self)
        finally:
            for job in held:
                del job.discard

    def is_with_a_child(job: Any) -> bool:
        """Some of it has been written, at least. Its writer is gone when all has."""
        writer = asynpool._get_job_writer(job)
        return bool(job._write_to) and (writer is None or not asynpool.gen_not_started(writer))

    return flush
