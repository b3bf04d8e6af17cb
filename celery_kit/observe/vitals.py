"""A remote control command of every worker, `celery inspect vitals`: all that a table of workers needs, in one answer.

Source: Celery's user guide, "Workers: Writing your own remote control commands".
"""

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from celery_kit.base.conf import transport_options
from celery_kit.base.signals import celeryd_init
from celery_kit.pools.table import named

clock = time.time


#: How many names of tasks a worker tells at most.
MOST_TASKS = 100


def connect() -> None:
    celeryd_init.connect(_register, weak=False)


def memory(pids: list[int]) -> int:
    """What processes hold together, in bytes: pages that they share count once (Linux; 0 elsewhere)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1_024 for line in lines if line.startswith("Pss:"))
    return total


def _register(**_: Any) -> None:
    control: Any = import_module("celery.worker.control")  # only in workers
    work: Any = import_module("celery.worker.state")

    @control.inspect_command()
    def vitals(state: Any) -> dict[str, Any]:
        """Pool, concurrency, queues, numbers of tasks, names of those that it knows, memory (bytes)."""
        consumer = state.consumer
        consuming = [queue.name for queue in getattr(consumer.task_consumer, "queues", [])]
        info = consumer.pool.info if consumer.pool else {}
        limits = [getattr(task, "time_limit", None) or state.app.conf.task_time_limit or 0 for task in state.app.tasks.values()]
        active = len(work.active_requests)
        known = sorted(name for name in state.app.tasks if not name.startswith("celery."))
        return {
            "pool": named(consumer.pool),
            "concurrency": info.get("max-concurrency", 1),
            "consuming": consuming,
            "tasks": known[:MOST_TASKS],
            "registered": len(known),
            "active": active,
            "reserved": max(0, len(work.reserved_requests) - active),
            "scheduled": len(consumer.timer.queue),
            "processed": sum(work.total_count.values()),
            "memory": memory([os.getpid(), *(pid for pid in info.get("processes", []) if isinstance(pid, int))]),
            "visibility_timeout": transport_options(state.app.conf).get("visibility_timeout"),
            "longest_task": max(limits, default=None),
            "clock": clock(),
        }
