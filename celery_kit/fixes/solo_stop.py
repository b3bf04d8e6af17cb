"""A worker of the pool solo that is told to end begins the tasks that RabbitMQ has sent ahead, and ends after the last of them.

Celery 5.7.0 closes its connection step by step, waits for each answer, and reads on the way what was delivered before. On solo
a delivery is the task's run: a SIGTERM lasts as long as all of these tasks, and after a SIGQUIT one begins that should not.
Source: celery/worker/pidbox.py, Pidbox._close_channel; amqp/channel.py, basic_cancel.

Closed by taking no delivery once a signal has come: unacknowledged, the broker has it back. Can go when
tests/faults/test_shutdown.py::test_a_stop_begins_nothing_that_was_sent_ahead passes without it.
"""

from typing import Any

from celery import signals

from celery_kit.base.signals import celeryd_init
from celery_kit.pools.table import chosen, row


def connect() -> None:
    """Have every worker whose loop rests during a task stop so."""
    celeryd_init.connect(_install, weak=False)


def _install(instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    pool = row(chosen(conf, options))
    if pool is None or pool.answers_while_busy:
        return

    def stop(**_: Any) -> None:
        consumer = getattr(getattr(instance, "consumer", None), "task_consumer", None)
        if consumer:
            consumer.on_message = lambda _: None

    signals.worker_shutting_down.connect(stop, weak=False)
