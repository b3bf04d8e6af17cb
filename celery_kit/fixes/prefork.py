"""Faults of prefork's pool."""

import os
from typing import Any

from celery_kit.base.choices import is_auto
from celery_kit.base.signals import worker_init


def auto_concurrency(**_: Any) -> None:
    """Have `worker_concurrency=auto` mean one process for each CPU core that the process may use.

    Celery before 5.7 takes it for the number itself. From 5.7 on it also looks at the container's CPU limit.
    """
    worker_init.connect(_resolve, weak=False)


def _resolve(sender: Any, **_: Any) -> None:
    if is_auto(sender.concurrency):  # the pool has no number of its own (celery_kit/pools/table.py)
        sender.concurrency = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
