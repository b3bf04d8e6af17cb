"""Queues that are paused: a worker consumes them again once they are resumed. `make pause` and `make resume`.

The broker stores which queues are paused (`celery_kit/brokers/`), and a worker reads that when it connects, when a command asks
it to, and every EVERY seconds: so a worker that started later, was busy or lost a message knows it as well, and the order in
which commands arrive does not matter. A paused queue stays one of the worker's own, `app.amqp.queues.consume_from`; only its
consumer is cancelled. Tasks that the worker holds are run.
"""

from collections.abc import Collection
from threading import Lock

from celery import bootsteps
from celery.utils.log import get_logger
from kombu import Exchange, Queue
from kombu.utils.imports import symbol_by_name

from celery_kit import brokers
from celery_kit.base.types import Callback, Connection, Control, TimerEntry, WorkerConsumer
from celery_kit.brokers.contract import Pauses
from celery_kit.observe.health import BOUNDED

logger = get_logger(__name__)
#: Seconds between two looks.
EVERY = 20.0


class Step(bootsteps.StartStopStep):
    """Consumes no queue that is paused."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: WorkerConsumer, **options: object) -> None:
        super().__init__(parent, **options)
        parent.paused = frozenset()
        broker = brokers.room(parent.app.conf.broker_read_url)
        self.enabled = bool(broker and broker.pauses)
        if broker and broker.pauses:
            self.parent = parent
            self.pauses: Pauses = symbol_by_name(broker.pauses)()
            self.connection: Connection | None = None
            self.timer: TimerEntry | None = None
            self.said = ""
            self.answered: Collection[str] = ()
            self.looking = Lock()  # on green pools a command and the timer look at the same time
            parent.add_task_queue = self.unless_paused(parent, parent.add_task_queue)
            self.answer()

    def answer(self) -> None:
        """Have the worker answer the command `pauses`."""
        from celery.worker import control, state  # only in workers

        @control.inspect_command()
        def pauses(_: Control) -> dict[str, object]:
            """Look which queues are paused, and stop or start consuming them."""
            return {"paused": self.look(), "held": len(state.reserved_requests)}

    def start(self, parent: WorkerConsumer) -> None:
        """Look before anything is consumed. Raises the connection's errors: a worker that cannot know does not start."""
        try:
            self.apply(self.pauses.paused(parent.connection, self.own()))
        except parent.connection_errors:
            raise
        except Exception as error:
            self.unknown(error)
        self.timer = parent.timer.call_repeatedly(EVERY, self.look)

    def stop(self, parent: WorkerConsumer) -> None:
        """Look no more."""
        if self.timer is not None:
            # Green pools return the greenlet of the first round, which is falsy and cannot be cancelled after that round.
            getattr(self.timer, "entry", self.timer).cancel()
            self.timer = None
        self.drop()

    shutdown = stop

    def own(self) -> Collection[str]:
        """The queues that this worker consumes unless they are paused."""
        return [*self.parent.app.amqp.queues.consume_from]

    def look(self) -> list[str]:
        """Ask the broker, and have the worker's loop consume accordingly. Returns the worker's queues that are paused."""
        with self.looking:
            self.answered = self.ask(self.own())
            if self.timer is not None:
                # Without an event loop, what was added last is called first: each call applies the last answer.
                self.parent.call_soon(lambda: self.apply(self.answered))
            return sorted(self.answered)

    def ask(self, queues: Collection[str]) -> Collection[str]:
        """Those of the queues that are paused; if the broker does not answer, as far as it was known before."""
        try:
            if self.connection is None:
                self.connection = self.connect()
            return self.pauses.paused(self.connection, queues)
        except Exception as error:
            self.unknown(error)
            self.drop()
            return self.parent.paused & {*queues}

    def connect(self) -> Connection:
        """A connection of its own, whose timeouts keep a broker that does not answer from blocking the worker's loop."""
        consumers = self.parent.connection
        options = {**(consumers.transport_options or {}), **BOUNDED}
        return consumers.clone(connect_timeout=3, heartbeat=0, transport_options=options)

    def drop(self) -> None:
        """Drop that connection."""
        connection, self.connection = self.connection, None
        if connection:
            connection.collect(socket_timeout=1)

    def unknown(self, error: Exception) -> None:
        """Note that the broker could not be asked; the same error once."""
        if repr(error) != self.said:
            self.said = repr(error)
            logger.warning("the broker could not be asked which queues are paused: %r", error)

    def apply(self, paused: Collection[str]) -> None:
        """Cancel the consumers of these queues, and consume the worker's others. Called by the worker's loop."""
        parent, consumer = self.parent, self.parent.task_consumer
        if consumer is None:  # the connection is lost, and the next one is asked as it starts
            return
        parent.paused = frozenset(paused)
        there = {queue.name for queue in consumer.queues}
        for name in sorted(there.intersection(paused)):
            logger.warning("queue %s is paused: it is not consumed until it is resumed", name)
            consumer.cancel_by_queue(name)
        if again := [queue for name, queue in parent.app.amqp.queues.consume_from.items() if name not in {*there, *paused}]:
            for queue in again:
                logger.warning("queue %s is resumed", queue.name)
                consumer.add_queue(queue)
            consumer.consume()

    def unless_paused(self, parent: WorkerConsumer, celerys: Callback) -> Callback:
        """Celery's handler of `add_consumer`, which only declares a queue that is paused, as one of the worker's own."""

        def add_task_queue(
            queue: str,
            exchange: str | None = None,
            exchange_type: str | None = None,
            routing_key: str | None = None,
            **more: object,
        ) -> None:
            with self.looking:
                paused = self.ask([queue])
            consumer, queues = parent.task_consumer, parent.app.amqp.queues
            if not paused or consumer is None:
                celerys(queue, exchange, exchange_type, routing_key, **more)
                return
            if queue not in queues:  # asking for a missing one would make it, of another type
                kind = Exchange(exchange or queue, exchange_type or "direct")
                queues.add(Queue(queue, kind, routing_key=routing_key or queue, **more))  # type: ignore[arg-type]
            consumer.add_queue(queues[queue])
            queues.select_add(queues[queue])
            self.apply({*parent.paused, queue})

        return add_task_queue
