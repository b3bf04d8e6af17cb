"""Faults of an app's table of queues."""

from typing import Any

from kombu import Exchange, Queue


class MissingQueueType:
    """For an app's AMQP: queues that are not declared in task_queues have the type that the settings name.

    Celery before 5.6 makes each a classic queue on a direct exchange: task_create_missing_queue_type and
    task_create_missing_queue_exchange_type came then.
    """

    app: Any
    queues_cls: Any

    def Queues(self, *args: Any, **options: Any) -> Any:
        conf = self.app.conf
        types = {
            "create_missing_queue_type": conf.get("task_create_missing_queue_type"),
            "create_missing_queue_exchange_type": conf.get("task_create_missing_queue_exchange_type"),
        }
        self.queues_cls = type("Queues", (_Typed, type(self).queues_cls), types)
        return super().Queues(*args, **options)  # type: ignore[misc]


class _Typed:
    create_missing_queue_type: str | None
    create_missing_queue_exchange_type: str | None
    autoexchange: Any

    def new_missing(self, name: str) -> Queue:
        kind, exchange = self.create_missing_queue_type, self.create_missing_queue_exchange_type
        arguments = {"x-queue-type": kind} if kind and kind != "classic" else None
        return Queue(name, Exchange(name, exchange) if exchange else self.autoexchange(name), name, queue_arguments=arguments)
