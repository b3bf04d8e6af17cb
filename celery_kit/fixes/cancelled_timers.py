"""A prefork worker whose tasks have a time limit grows with each task, for as long as the limit lasts.

The limit is an entry of the worker's timer, cancelled when the task ends. kombu 5.7.0 leaves what is cancelled in its heap
until its time has come: half a kilobyte for each task of the last `task_time_limit` seconds. Source:
kombu/asynchronous/timer.py, Timer.cancel; celery/concurrency/asynpool.py, _create_timelimit_handlers;
https://github.com/celery/celery/issues/5200

Closed by taking the cancelled entries out whenever there are twice as many entries as were left the last time. Can go when
tests/unit/fixes/test_cancelled_timers.py passes without it.
"""

from heapq import heappop, heappush
from importlib import import_module
from typing import Any

from kombu.asynchronous.timer import Timer

from celery_kit.base.signals import celeryd_init

#: Entries that are not worth a look.
FEW = 500


def connect() -> None:
    """Have every worker with kombu's loop use it."""
    celeryd_init.connect(_patch, weak=False)


def _patch(**_: Any) -> None:
    components: Any = import_module("celery.worker.components")  # only in workers
    components._Timer = SweptTimer


class SweptTimer(Timer):
    """Its entries are entered in the loop's thread."""

    _queue: list[Any]
    _sweep_at = 2 * FEW

    def _enter(self, eta: float, priority: int, entry: Any, *more: Any) -> Any:
        if len(self._queue) >= self._sweep_at:
            self._sweep()
        return super()._enter(eta, priority, entry, *more)

    def _sweep(self) -> None:
        """One by one, and in the same list: the loop's iterator holds it, and another thread may enter something meanwhile."""
        kept = []
        while self._queue:
            if not (one := heappop(self._queue)).entry.canceled:
                kept.append(one)
        for one in kept:
            heappush(self._queue, one)
        self._sweep_at = 2 * max(len(kept), FEW)
