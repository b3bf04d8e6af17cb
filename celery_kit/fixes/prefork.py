"""Faults of prefork's pool."""

import os

from celery_kit.base.choices import is_auto
from celery_kit.base.signals import worker_init
from celery_kit.base.types import Worker


def auto_concurrency(**_: object) -> None:
    """Have `worker_concurrency=auto` mean one process for each CPU core that the worker may use.

    Celery before 5.7 takes the word for the number itself. From 5.7 on Celery resolves it, by the container's CPU limit too.
    """
    worker_init.connect(_resolve, weak=False)


def _resolve(sender: Worker, **_: object) -> None:
    if is_auto(sender.concurrency):  # the pool has no number of its own (celery_kit/pools/table.py)
        sender.concurrency = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
