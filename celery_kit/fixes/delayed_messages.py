"""Faults of native delayed delivery: with quorum queues, the broker holds a task that has a countdown or an ETA."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Protocol

from amqp.exceptions import AccessRefused, NotFound
from celery import Celery
from celery.utils.time import maybe_make_aware
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.transport import native_delayed_delivery as delivery

from celery_kit.base.messages import DELAY, UnroutedError
from celery_kit.base.types import Callback, Options, WorkerConsumer

logger = logging.getLogger(__name__)
#: The exchange that delayed messages are published to.
EXCHANGE = "celery_delayed_delivery"
KIND = "topic"
#: Seconds to an ETA within which sending may take until less than one is left.
NEAR = 10


class Declares(Protocol):
    """A channel of kombu's, of which the stubs have no methods."""

    def queue_declare(self, queue: str, passive: bool) -> object: ...
    def exchange_declare(self, exchange: str, kind: str, passive: bool) -> object: ...


class Delayed:
    """The queues that delayed tasks of this process can reach: fix `delayed_queue`.

    In Celery only workers declare the exchanges and queues that delay tasks, and bind to them the queues that they consume.
    Before the first worker, a producer gets 404 NOT_FOUND. Later the broker confirms a delayed task for a new queue, and drops
    it at the end of its delay. Here the producer declares and binds, once for each queue.
    """

    def __init__(self, app: Celery) -> None:
        self.app = app
        #: Queues by name, host and port.
        self.bound: set[tuple[object, ...]] = set()

    def prepare(
        self, name: str, args: Sequence[object] | None, kwargs: Mapping[str, object] | None, options: Mapping[str, object]
    ) -> None:
        """Bind the queue of such a task to the delayed delivery. Raises what publishing raises, after the same timeout."""
        queue: Queue | None = self.app.amqp.router.route(dict(options), name, tuple(args or ()), dict(kwargs or {})).get(
            "queue"
        )
        if queue is not None and queue.exchange.type != "direct":
            self.reach(queue)

    def reach(self, queue: Queue) -> None:
        """Have delayed tasks reach a queue of another exchange than a direct one. Raises as `prepare`."""
        with self.app.producer_or_acquire() as producer:
            to = producer.connection
            if (queue.name, to.hostname, to.port) not in self.bound:  # several brokers have a queue of this name each
                producer.with_retries(lambda: self._bind(producer.connection, queue))
                self.bound.add((queue.name, to.hostname, to.port))

    def _bind(self, producers: Connection, queue: Queue) -> None:
        # On the same broker, but not on the producer's channel, which an error would close.
        with self.app.amqp.Connection(**producers.info()) as connection:
            channel: Declares = connection.default_channel  # type: ignore[assignment]  # its stub has no methods
            try:
                self.declare(connection, channel, queue)
            except AccessRefused:  # a producer need not have the right to it: workers bind what they consume
                another: Declares = connection.channel()  # type: ignore[assignment]
                try:
                    another.queue_declare(queue.name, passive=True)
                except NotFound as error:  # the task would be dropped at the end of its delay
                    raise UnroutedError(f"no worker has declared queue {queue.name!r} yet") from error

    def declare(self, connection: Connection, channel: Declares, queue: Queue) -> None:
        """Declare a queue and what delays tasks, and bind them. An error may close `channel`. Raises AccessRefused."""
        try:
            channel.exchange_declare(delivery.CELERY_DELAYED_DELIVERY_EXCHANGE, KIND, passive=True)
        except AccessRefused:
            raise
        except connection.channel_errors:  # there is none; the error has closed the channel
            delivery.declare_native_delayed_delivery_exchanges_and_queues(
                connection, self.app.conf.broker_native_delayed_delivery_queue_type
            )
        queue(connection.channel()).declare()
        delivery.bind_queue_to_native_delayed_delivery_exchange(connection, queue)


def rounded_up(countdown: float | None, eta: datetime | str | None, now: datetime) -> tuple[float | None, datetime | None]:
    """Return countdown (seconds) and ETA, as a countdown of at least one second if the ETA is NEAR: fix `short_delays`.

    Celery passes `int(countdown)` to kombu, which refuses 0: `ValueError: countdown must be a positive number`. apply_async
    raises that. In a worker, Task.retry turns the retry into a failure. It happens by chance to retries with jitter, and to an
    ETA of which less than a second is left once the connection is open: a countdown does not get shorter meanwhile. Raises
    ValueError for an ETA that is no date.
    """
    if isinstance(eta, str):
        eta = datetime.fromisoformat(eta)
    left = (maybe_make_aware(eta) - now).total_seconds() if eta else countdown or 0
    return (max(1, left), None) if 0 < left < (NEAR if eta else 1) else (countdown, eta)


def named(options: Options) -> Options:
    """Return send_task's options with the queue's name in place of the exchange and routing key that mean it: `retry_queue`.

    Task.retry names the exchange and routing key that the message came by. send_task only looks at the queue, and takes the
    default one; after a delayed delivery the key also carries 28 digits of the delay. So a retry never gets to the workers of
    its queue.
    """
    exchange, routing_key = options.get("exchange"), options.get("routing_key")
    if options.get("queue") or not isinstance(exchange, str) or not isinstance(routing_key, str):
        return options
    queue = DELAY.sub("", routing_key)
    if exchange not in (queue, EXCHANGE):
        return options
    return {name: value for name, value in options.items() if name not in ("exchange", "routing_key")} | {"queue": queue}


class _Step(Protocol):
    """celery.worker.consumer.delayed_delivery.DelayedDelivery, with its own `start` under another name."""

    celerys_start: Callback
    _validate_configuration: Callback


def delayed_start(**_: object) -> None:
    """Have a worker declare the exchanges and queues that delay tasks in a thread, for the queues that it consumes.

    Celery declares 29 exchanges, 28 queues and their bindings one after the other before the worker consumes: 113 round trips,
    0.33 s of a start if they are new. The worker's own tasks need none of them, because their producer has bound their queue
    (:class:`Delayed`). Others wait until the worker is healthy (celery_kit/observe/health.py).

    Celery also binds each queue that the app knows, not only those of `-Q`. If nobody has declared one of the others, it logs
    at CRITICAL that delayed delivery is not available, although it is.
    """
    step: type = import_module("celery.worker.consumer.delayed_delivery").DelayedDelivery  # only in workers
    if not hasattr(step, "celerys_start"):
        for name, value in {
            "celerys_start": vars(step)["start"],
            "start": _start,
            "_bind_queues": _of_this_moment(vars(step)["_bind_queues"]),
        }.items():
            setattr(step, name, value)


def _of_this_moment(bind: Callback) -> Callback:
    """Bind the queues that are consumed when it begins: tasks run meanwhile, and may name others."""

    def _bind_queues(self: _Step, app: Celery, connection: Connection) -> None:
        bind(self, SimpleNamespace(amqp=SimpleNamespace(queues=dict(app.amqp.queues.consume_from))), connection)

    return _bind_queues


def _start(self: _Step, consumer: WorkerConsumer) -> None:
    """Start the thread. Raises ValueError, as Celery's own does, if the settings are wrong.

    A queue that is added by remote control is bound at once: Celery leaves that to producers, who may have no right to it.
    """
    self._validate_configuration(consumer.app)
    if "makes_delays" not in vars(consumer):  # once, in front of what other steps have put there
        vars(consumer)["add_task_queue"] = partial(_added, consumer, getattr(consumer, "add_task_queue"))  # noqa: B009
    making = threading.Thread(target=self.celerys_start, args=(consumer,), name="delays", daemon=True)
    vars(consumer)["makes_delays"] = making.is_alive
    making.start()


def _added(consumer: WorkerConsumer, add: Callback, queue: str, *more: object, **options: object) -> None:
    add(queue, *more, **options)
    try:
        if (found := consumer.app.amqp.queues[queue]).exchange.type != "direct":
            Delayed(consumer.app).reach(found)
    except OperationalError as error:
        logger.error("tasks with a countdown or an ETA do not reach queue %s until a worker starts with it: %s", queue, error)


def makes(consumer: object) -> bool:
    """Whether the consumer's thread still declares what delays tasks."""
    making: Callable[[], bool] | None = getattr(consumer, "makes_delays", None)
    return making is not None and making()
