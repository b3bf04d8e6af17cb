"""`celery inspect vitals`, a remote control command of every worker: all that a table of workers needs, in one answer.

Source: Celery's user guide, "Workers: Writing your own remote control commands".
"""

import os
import time
from pathlib import Path

from celery_kit.base.conf import transport_options
from celery_kit.base.facts import Vitals
from celery_kit.base.signals import celeryd_init
from celery_kit.base.types import Control
from celery_kit.pools.measures import measures
from celery_kit.pools.table import named

clock = time.time


#: The most names of tasks that a worker reports.
MOST_TASKS = 100


def connect() -> None:
    """Have every worker answer the command."""
    celeryd_init.connect(_register, weak=False)


def memory(pids: list[int]) -> int:
    """The memory of several processes in bytes, where shared pages count once. 0 on systems other than Linux."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1_024 for line in lines if line.startswith("Pss:"))
    return total


def _register(**_: object) -> None:
    from celery.worker import control, state  # only in workers

    @control.inspect_command()
    def vitals(panel: Control) -> Vitals:
        """Pool, concurrency, queues, numbers of tasks, names of registered tasks, memory (bytes), what became of tasks."""
        consumer = panel.consumer
        consuming = [queue.name for queue in getattr(consumer.task_consumer, "queues", [])]
        paused = set(getattr(consumer, "paused", ())) & {*panel.app.amqp.queues.consume_from}
        info = consumer.pool.info if consumer.pool else {}
        limits = [getattr(task, "time_limit", None) or panel.app.conf.task_time_limit or 0 for task in panel.app.tasks.values()]
        active = len(state.active_requests)
        options = transport_options(panel.app.conf)
        # With a lease, a message is not redelivered because its task runs long.
        redelivery = None if options.get("lease_seconds") else options.get("visibility_timeout")
        known = sorted(name for name in panel.app.tasks if not name.startswith("celery."))
        return {
            "pool": named(consumer.pool),
            "version": panel.app.conf.get("app_version") or None,
            "concurrency": info.get("max-concurrency", 1),
            "consuming": consuming,
            "paused": sorted(paused),
            "tasks": known[:MOST_TASKS],
            "registered": len(known),
            "active": active,
            "reserved": max(0, len(state.reserved_requests) - active),
            "scheduled": len(consumer.timer.queue),
            "processed": sum(state.total_count.values()),
            "memory": memory([os.getpid(), *(pid for pid in info.get("processes", []) if isinstance(pid, int))]),
            "visibility_timeout": redelivery if isinstance(redelivery, int | float) else None,
            "longest_task": max(limits, default=None),
            "clock": clock(),
            "measures": measures.report(),
        }
