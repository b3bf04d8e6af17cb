"""Faults of an app's table of queues."""

from collections.abc import Callable
from typing import Any

from celery.app import amqp
from kombu import Exchange, Queue


class MissingQueueType(amqp.AMQP):
    """For an app's AMQP: queues that task_queues does not name have the type that the settings name.

    Celery before 5.6 declares each as a classic queue on a direct exchange. It has task_create_missing_queue_type and
    task_create_missing_queue_exchange_type since.
    """

    def Queues(self, *args: Any, **options: Any) -> amqp.Queues:
        """Make the table of queues. As Celery's."""
        conf = self.app.conf
        types = {
            "create_missing_queue_type": conf.get("task_create_missing_queue_type"),
            "create_missing_queue_exchange_type": conf.get("task_create_missing_queue_exchange_type"),
        }
        self.queues_cls = type("Queues", (_Typed, type(self).queues_cls), types)
        return super().Queues(*args, **options)


class _Typed(amqp.Queues):
    create_missing_queue_type: str | None
    create_missing_queue_exchange_type: str | None
    autoexchange: Callable[[str], Exchange]

    def new_missing(self, name: str) -> Queue:
        kind, exchange = self.create_missing_queue_type, self.create_missing_queue_exchange_type
        arguments = {"x-queue-type": kind} if kind and kind != "classic" else None
        return Queue(name, Exchange(name, exchange) if exchange else self.autoexchange(name), name, queue_arguments=arguments)
