"""A worker on RabbitMQ does nothing for 0.1 s before its first round, where it holds all the messages that it may.

Celery 5.7.0 has the broker's connection read before its loop polls for the first time: what py-amqp has in its buffer no poll
would tell of. It waits up to 0.1 s for something to come, and nothing does where the prefetch window is full or the queue is
empty; meanwhile nobody hands the messages to prefork's children. Source: celery/worker/loops.py, asynloop, _quick_drain.

Closed by taking what there is, and not waiting for more: the poll that follows does that. Can go when
tests/unit/fixes/test_quick_drain.py passes without it.
"""

from importlib import import_module
from typing import Any

from celery_kit.base.signals import celeryd_init

#: Seconds. Not 0: py-amqp loses a frame's first bytes where a socket that does not block has only those.
WAIT = 0.001


def connect() -> None:
    """Have every worker with kombu's loop begin so."""
    celeryd_init.connect(_patch, weak=False)


def _patch(**_: Any) -> None:
    loops: Any = import_module("celery.worker.loops")  # only in workers
    drain = loops._quick_drain

    def _quick_drain(connection: Any, timeout: float = WAIT) -> None:
        drain(connection, min(timeout, WAIT))

    loops._quick_drain = _quick_drain
