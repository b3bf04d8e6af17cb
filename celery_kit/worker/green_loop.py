"""The consumer's loop on green pools (eventlet, gevent), in place of Celery's synloop.

Celery 5.7.0's synloop waits up to 0.1 s for the event connection after every message. With events or heartbeats on, a worker on
RabbitMQ does at most 10 tasks/s after the first prefetch window. Source: celery/worker/loops.py, synloop.

This loop reads the event connection once a second. What the broker's connection has to do between messages - refill the
prefetch window, restore messages of dead workers - is the transport's part, for example in celery_kit/brokers/redis/poller.py.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from celery import bootsteps
from celery.bootsteps import Blueprint

from celery_kit.base.types import Connection, EventDispatcher, Prefetch, TaskConsumer, Timer, WorkerConsumer

RUN: int = vars(bootsteps)["RUN"]  # unknown to celery-types
#: The longest wait for messages, in seconds. The loop notices a stop that much later at most.
WAIT = 1.0


class GreenLoop(bootsteps.StartStopStep):
    """Replaces `Consumer.loop`, which the consumer's last step runs, on green pools: a row of celery_kit/fixes.

    Source: Celery's user guide, "Extensions and Bootsteps".
    """

    requires = ("celery.worker.consumer.events:Events",)

    def include_if(self, parent: WorkerConsumer) -> bool:
        """Green pools have no event loop of kombu's."""
        return parent.hub is None and getattr(parent.pool, "is_green", False)

    def create(self, parent: WorkerConsumer) -> None:
        """Set the loop."""
        parent.loop = loop


def loop(
    consumer: WorkerConsumer,
    connection: Connection,
    task_consumer: TaskConsumer,
    blueprint: Blueprint,
    hub: object,
    qos: Prefetch,
    heartbeat: object,
    clock: object,
    rate: int = 2,
    **_: object,
) -> None:
    """Consume until the worker is stopping or its connection is lost. The parameters are those of `Consumer.loop_args`.

    `rate`: heartbeats are checked so many times in each interval. Raises the transport's connection errors.
    """
    from celery.worker.state import maybe_shutdown  # only in workers

    task_consumer.on_message = consumer.create_task_handler()
    task_consumer.consume()
    consumer.on_ready()
    events = consumer.event_dispatcher
    with _heartbeats(consumer.timer, rate, [connection, *([events.connection] if events else [])]) as lost:
        read_events_at = monotonic()
        while blueprint.state == RUN and consumer.connection:
            maybe_shutdown()
            if lost:
                raise lost[0]
            if qos.prev != qos.value:
                qos.update()
            consumer.perform_pending_operations()
            try:
                connection.drain_events(timeout=WAIT)
                if events and monotonic() > read_events_at + WAIT:
                    read_events_at = monotonic()
                    _read(events)
            except TimeoutError as error:
                if error.errno:  # not the end of this wait, but TCP's own timeout: the connection is lost
                    raise
                if events:
                    _read(events)
            except OSError:
                if blueprint.state == RUN:
                    raise


@contextmanager
def _heartbeats(timer: Timer, rate: int, connections: list[Connection]) -> Iterator[list[Exception]]:
    """Send each connection's AMQP heartbeats while the block runs. Yields a list that gets the error of a lost connection."""
    lost: list[Exception] = []

    def tick(connection: Connection) -> None:
        try:
            connection.heartbeat_check(rate)
        except Exception as error:
            lost.append(error)

    ticks = [
        timer.call_repeatedly(connection.get_heartbeat_interval() / rate, tick, (connection,))
        for connection in connections
        if connection.supports_heartbeats and connection.get_heartbeat_interval()
    ]
    try:
        yield lost
    finally:
        for entry in ticks:
            timer.cancel(entry)


def _read(events: EventDispatcher) -> None:
    """Read the broker's heartbeats from the event connection, which would count as dead otherwise."""
    if not events.connection.supports_heartbeats:
        return
    try:
        with events.mutex:  # two greenlets must not read one socket: a publisher waits for its confirm under this lock
            while True:
                # Not 0: py-amqp loses the first bytes of a frame that a non-blocking socket has only in part.
                events.connection.drain_events(timeout=0.001)
    except TimeoutError:
        pass
