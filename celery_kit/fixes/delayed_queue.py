"""A delayed task for a queue that no worker has consumed yet fails, or is lost, where the broker itself delays tasks.

Celery 5.7.0 leaves it to workers to make what delays tasks on RabbitMQ, and to bind to it the queues that they consume. Before
the first worker a producer gets 404 NOT_FOUND; after it, the broker confirms the task, and drops it when its time has come, if
its queue is a new one. Source: celery/worker/consumer/delayed_delivery.py; celery/app/base.py, send_task.

Closed by having the producer make both, once for each queue. Can go when
tests/integration/test_queues.py::test_delay_before_its_worker passes without it.
"""

from typing import Any

from kombu.transport import native_delayed_delivery as delivery

KIND = "topic"


class Delayed:
    """The queues of a process to which delayed tasks can be sent."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.bound: set[tuple[Any, ...]] = set()

    def prepare(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
        """Have the queue of such a task reached after its delay. Raises what publishing raises, in the same time."""
        queue = self.app.amqp.router.route(dict(options), name, args or (), kwargs or {}).get("queue")
        if queue is None or queue.exchange.type == "direct":
            return
        with self.app.producer_or_acquire() as producer:
            to = producer.connection
            if (queue.name, to.hostname, to.port) not in self.bound:  # of several brokers each has its own
                producer.patiently(lambda: self._bind(producer.connection, queue))
                self.bound.add((queue.name, to.hostname, to.port))

    def _bind(self, producers: Any, queue: Any) -> None:
        # To the same broker, by channels that are not the producer's: errors close them.
        with self.app.amqp.Connection(**producers.info()) as connection:
            channel = connection.default_channel
            try:
                channel.exchange_declare(delivery.CELERY_DELAYED_DELIVERY_EXCHANGE, KIND, passive=True)
            except connection.channel_errors:  # it is not there; the error has closed the channel
                delivery.declare_native_delayed_delivery_exchanges_and_queues(
                    connection, self.app.conf.broker_native_delayed_delivery_queue_type
                )
            queue(connection.channel()).declare()
            delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue)
