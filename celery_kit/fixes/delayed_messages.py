"""Faults of native delayed delivery: with quorum queues the broker itself holds a task that has a countdown or an ETA."""

import re
import threading
from collections.abc import Callable
from datetime import datetime
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from celery.utils.time import maybe_make_aware
from kombu.transport import native_delayed_delivery as delivery

#: What kombu puts before the routing key: the delay in seconds, in binary.
DELAY = re.compile(r"^(?:[01]\.){28}")
#: The exchange that delayed messages are published to.
EXCHANGE = "celery_delayed_delivery"
KIND = "topic"
#: Seconds to an ETA within which sending may take until less than one is left.
NEAR = 10


class Delayed:
    """The queues that delayed tasks of this process can reach: fix `delayed_queue`.

    Celery leaves it to workers to declare the exchanges and queues that delay tasks, and to bind to them the queues that they
    consume. Before the first worker a producer gets 404 NOT_FOUND; after it, the broker confirms a task for a new queue and
    drops it when its delay is over. Here the producer declares and binds, once for each queue.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.bound: set[tuple[Any, ...]] = set()

    def prepare(self, name: str, args: Any, kwargs: Any, options: dict[str, Any]) -> None:
        """Bind the queue of such a task to the delayed delivery. Raises what publishing raises, after the same timeout."""
        queue = self.app.amqp.router.route(dict(options), name, args or (), kwargs or {}).get("queue")
        if queue is None or queue.exchange.type == "direct":
            return
        with self.app.producer_or_acquire() as producer:
            to = producer.connection
            if (queue.name, to.hostname, to.port) not in self.bound:  # each of several brokers has its own
                producer.with_retries(lambda: self._bind(producer.connection, queue))
                self.bound.add((queue.name, to.hostname, to.port))

    def _bind(self, producers: Any, queue: Any) -> None:
        # To the same broker, by channels that are not the producer's: errors close them.
        with self.app.amqp.Connection(**producers.info()) as connection:
            channel = connection.default_channel
            try:
                channel.exchange_declare(delivery.CELERY_DELAYED_DELIVERY_EXCHANGE, KIND, passive=True)
            except connection.channel_errors:  # there is none; the error has closed the channel
                delivery.declare_native_delayed_delivery_exchanges_and_queues(
                    connection, self.app.conf.broker_native_delayed_delivery_queue_type
                )
            queue(connection.channel()).declare()
            delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def rounded_up(countdown: float | None, eta: datetime | str | None, now: datetime) -> tuple[float | None, Any]:
    """Return countdown (seconds) and ETA, as a countdown of at least one second where the ETA is NEAR: fix `short_delays`.

    Celery passes `int(countdown)` to kombu, which refuses 0: `ValueError: countdown must be a positive number`. apply_async
    raises; in a worker Task.retry turns a retry into a failure. Retries with jitter meet it by chance, and so does an ETA of
    which less than a second is left once the connection is there: a countdown does not get shorter meanwhile.
    """
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    left = (maybe_make_aware(eta) - now).total_seconds() if eta else countdown or 0
    return (max(1, left), None) if 0 < left < (NEAR if eta else 1) else (countdown, eta)


def named(options: dict[str, Any]) -> dict[str, Any]:
    """Return send_task's options with the queue's name in place of an exchange and a routing key that mean it: `retry_queue`.

    Task.retry names the exchange and routing key that the message came by, and send_task looks only at the queue, which then is
    the default one; after a delayed delivery the key carries 28 digits of the delay, too. Workers of other queues never see
    their retries.
    """
    exchange, routing_key = options.get("exchange"), options.get("routing_key")
    if options.get("queue") or not isinstance(exchange, str) or not isinstance(routing_key, str):
        return options
    queue = DELAY.sub("", routing_key)
    if exchange not in (queue, EXCHANGE):
        return options
    return {name: value for name, value in options.items() if name not in ("exchange", "routing_key")} | {"queue": queue}


def delayed_start(**_: Any) -> None:
    """Have a worker declare what delays tasks in a thread of its own, for the queues that it consumes.

    Celery declares 29 exchanges, 28 queues and their bindings one after the other before the worker consumes: 113 answers, 0.33
    s of a start where they are new. The worker's own tasks need none of it, for their producer has bound their queue
    (:class:`Delayed`), and others wait until the worker is healthy (celery_kit/observe/health.py).

    Celery also binds each queue that the app knows, not only those of `-Q`. Where nobody has declared one of the others, it
    logs at CRITICAL that there will be no delayed delivery, though there is.
    """
    step: Any = import_module("celery.worker.consumer.delayed_delivery").DelayedDelivery  # only in workers
    if not hasattr(step, "at_its_leisure"):
        step.at_its_leisure, step.start = step.start, _start
        step._bind_queues = _of_this_moment(step._bind_queues)


def _of_this_moment(bind: Callable[..., None]) -> Callable[..., None]:
    """Bind the queues that are consumed when it begins: tasks run meanwhile, and may name others."""

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
    """Whether the consumer's thread still declares what delays tasks."""
    making = getattr(consumer, "makes_delays", None)
    return making is not None and bool(making())
