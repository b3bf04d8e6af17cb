"""A worker on RabbitMQ begins its first task a third of a second late: it makes what delays tasks first.

Celery 5.7.0 declares 29 exchanges, 28 queues and their bindings one after the other, and waits for each of the 113 answers,
before it consumes: 0.33 s of a start where they are new. A worker's own tasks need none of it - who sends a
delayed task from here has looked after its way (celery_kit/fixes/delayed_queue.py) - and others wait until the worker says that
it can be sent to (celery_kit/observe/health.py). Source: celery/worker/consumer/delayed_delivery.py, DelayedDelivery.start.

It also binds each queue that the application knows, not those alone that the worker consumes (`-Q`): where nobody has made one
of the others yet, it says CRITICAL, and that there will be no delayed delivery, though there is.

Closed by having a thread of its own do it, while the worker consumes, for the queues that it consumes; each other one's worker
and producers look after it. Can go when tests/unit/fixes/test_delayed_start.py::test_celery_still_makes_them_first fails.
"""

import threading
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from celery_kit.base.signals import celeryd_init


def connect() -> None:
    """Have every worker do so."""
    celeryd_init.connect(_patch, weak=False)


def _patch(**_: Any) -> None:
    """Patch Celery's step, once."""
    step: Any = import_module("celery.worker.consumer.delayed_delivery").DelayedDelivery  # only in workers
    if not hasattr(step, "at_its_leisure"):
        step.at_its_leisure, step.start = step.start, _start
        step._bind_queues = _of_this_moment(step._bind_queues)


def _of_this_moment(bind: Callable[..., None]) -> Callable[..., None]:
    """Bind the queues that are consumed at its begin: tasks run meanwhile, and may name others."""

    def _bind_queues(self: Any, app: Any, connection: Any) -> None:
        bind(self, SimpleNamespace(amqp=SimpleNamespace(queues=dict(app.amqp.queues.consume_from))), connection)

    return _bind_queues


def _start(self: Any, consumer: Any) -> None:
    """Raises ValueError, as Celery's own, where the settings are wrong."""
    self._validate_configuration(consumer.app)
    making = threading.Thread(target=self.at_its_leisure, args=(consumer,), name="delays", daemon=True)
    consumer.makes_delays = making.is_alive
    making.start()


def makes(consumer: Any) -> bool:
    """What delays tasks is not there yet."""
    making = getattr(consumer, "makes_delays", None)
    return making is not None and bool(making())
