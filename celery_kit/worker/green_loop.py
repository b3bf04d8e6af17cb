"""The consumer's loop on green pools (eventlet, gevent), in place of Celery's synloop.

Celery 5.7.0's synloop waits up to 0.1 s for the event connection after every message: with events or heartbeats on, a worker on
RabbitMQ gets to 10 tasks/s beyond the first prefetch window. And each event is published by itself there, where the other pools
send them in groups.
Source: celery/worker/loops.py, synloop; celery/worker/consumer/events.py ("should actually buffer").

Here the event connection is read once a second, and task events go in groups. What the broker's connection itself has to do
between messages - notice a free place in the prefetch window, restore messages of dead workers - is its transport's part:
celery_kit/brokers/redis/transport.py. Can go when tests/engine/test_workers.py::test_events_of_a_green_pool_go_in_groups passes
with Celery's own loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from celery import bootsteps

RUN: int = vars(bootsteps)["RUN"]  # unknown to celery-types
#: Seconds that a wait for messages lasts at most: so late does the loop see that the worker shall stop.
WAIT = 1.0
#: Seconds that a task's event waits for others to go with it.
GROUP_EVENTS = 0.05


class GreenLoop(bootsteps.StartStopStep):
    """Gives every worker of an app on a green pool this loop, which `Consumer.loop` names and its last step runs: a row of
    celery_kit/fixes.

    Source: Celery's user guide, "Extensions and Bootsteps".
    """

    requires = ("celery.worker.consumer.events:Events",)

    def include_if(self, parent: Any) -> bool:
        return parent.hub is None and getattr(parent.pool, "is_green", False)

    def create(self, parent: Any) -> None:
        parent.loop = loop

    def start(self, parent: Any) -> None:
        if dispatcher := parent.event_dispatcher:
            dispatcher.buffer_group = {"task"}
            dispatcher.on_send_buffered = _soon(parent.timer, dispatcher.flush)


def _soon(timer: Any, flush: Callable[[], None]) -> Callable[[], None]:
    """A function that has `flush` called once, GROUP_EVENTS seconds after its first call."""
    pending: list[bool] = []

    def run() -> None:
        pending.clear()
        flush()

    def ask() -> None:
        if not pending:
            pending.append(True)
            timer.call_after(GROUP_EVENTS, run)

    return ask


def loop(
    consumer: Any,
    connection: Any,
    task_consumer: Any,
    blueprint: Any,
    hub: Any,
    qos: Any,
    heartbeat: Any,
    clock: Any,
    rate: float = 2.0,
    **_: Any,
) -> None:
    """Consume until the worker shall stop or its connection is lost. The signature is that of `Consumer.loop_args`."""
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
                if error.errno:  # not the wait's end: TCP has given the connection up
                    raise
                if events:
                    _read(events)
            except OSError:
                if blueprint.state == RUN:
                    raise


@contextmanager
def _heartbeats(timer: Any, rate: float, connections: list[Any]) -> Iterator[list[Exception]]:
    """Send each connection's heartbeats (AMQP) while the block runs; gives a list that takes the error of one that is lost."""
    lost: list[Exception] = []

    def tick(connection: Any) -> None:
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


def _read(events: Any) -> None:
    """Take what has come in on the event connection: the broker's heartbeats, or it would count as dead."""
    if not events.connection.supports_heartbeats:
        return
    try:
        with events.mutex:  # two greenlets must not read one socket: a publisher waits for its confirm under this lock
            while True:
                # Not 0: py-amqp loses a frame's first bytes where a socket that does not block has only those.
                events.connection.drain_events(timeout=0.001)
    except TimeoutError:
        pass
