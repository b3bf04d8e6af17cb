"""Faults of the event loop of workers on prefork, threads and solo: it sleeps, waits or grows where it should not."""

from heapq import heappop, heappush
from importlib import import_module
from typing import Any

from celery.app.events import Events as CelerysEvents
from celery.events.dispatcher import EventDispatcher
from kombu import Connection, Producer
from kombu.asynchronous.hub import Hub
from kombu.asynchronous.timer import Entry, Timer, scheduled

from celery_kit.base.types import Callback

#: Seconds that the first read of a connection may wait. Not 0: py-amqp loses the first bytes of a frame if a non-blocking
#: socket has no more of it yet.
DRAIN = 0.001
#: A timer with fewer entries than this is not swept.
FEW = 500


def hub_stall(**_: object) -> None:
    """Have the loop poll without waiting while callbacks are ready.

    A callback that another callback passes to Hub.call_soon, in the loop's own thread, waits until the next poll returns: up to
    a second without traffic. With few messages in flight the next message often arrives only after such a callback (an
    acknowledgement, for example), so that the throughput of a worker drops at random to a fraction.
    """
    create = Hub._create_poller
    if create.__module__ == __name__:
        return

    def _create_poller(self: Hub) -> None:
        create(self)
        own = vars(self)
        poller = own["_poller"]
        poll = poller.poll
        poller.poll = lambda timeout: poll(0 if own["_ready"] else timeout)

    Hub._create_poller = _create_poller  # type: ignore[method-assign]


def quick_drain(**_: object) -> None:
    """Read what has arrived before the loop's first poll, without waiting for more.

    Celery reads the connection once before it polls, because a poll does not report what py-amqp has in its buffer. That read
    waits up to 0.1 s. If the prefetch window is full or the queue is empty, nothing comes, and meanwhile no message reaches
    prefork's children.
    """
    loops = vars(import_module("celery.worker.loops"))  # only in workers
    drain: Callback = loops["_quick_drain"]

    def _quick_drain(connection: Connection, timeout: float = DRAIN) -> None:
        drain(connection, min(timeout, DRAIN))

    loops["_quick_drain"] = _quick_drain


def cancelled_timers(**_: object) -> None:
    """Remove cancelled entries from the worker's timer once there are twice as many entries as the last sweep left.

    A task's time limit is an entry of the timer, which is cancelled when the task ends. kombu keeps a cancelled entry in its
    heap until it is due: half a kilobyte for each task of the last `task_time_limit` seconds.
    """
    vars(import_module("celery.worker.components"))["_Timer"] = SweptTimer  # only in workers


class SweptTimer(Timer):
    """kombu's timer without its cancelled entries. Entries are added in the loop's thread."""

    _queue: list[scheduled]
    _sweep_at = 2 * FEW

    def _enter(self, eta: float, priority: int, entry: Entry, push: Callback = heappush) -> Entry:
        if len(self._queue) >= self._sweep_at:
            self._sweep()
        return super()._enter(eta, priority, entry, push)

    def _sweep(self) -> None:
        """Sweep one entry at a time, in place: the loop's iterator holds the list, and another thread may add to it."""
        live = []
        while self._queue:
            if not (one := heappop(self._queue)).entry.canceled:
                live.append(one)
        for one in live:
            heappush(self._queue, one)
        self._sweep_at = 2 * max(len(live), FEW)


class Events(CelerysEvents):
    """Celery's events of an app. A worker sends them unconfirmed, and does not retry its own.

    With confirm_publish, each event would wait for the broker's confirm in the loop's thread, without a timeout. And if the
    broker became unavailable, a heartbeat event that is due before the loop notices would be retried until the broker is back,
    so that the loop never notices. Nothing depends on a single event. Those that are not sent are sent on the next connection.
    """

    dispatcher_cls = "celery_kit.fixes.event_loop:Dispatcher"


class Dispatcher(EventDispatcher):
    """Celery's dispatcher; see :class:`Events`."""

    channel: object
    producer: Producer

    def enable(self) -> None:
        """Open the connection for events, and have its channel publish without confirms."""
        super().enable()
        if self.channel is None:  # it has a connection of its own; a producer's channel also confirms tasks
            channel = self.producer.channel
            if unconfirmed := getattr(channel, "_basic_publish", None):
                vars(channel)["basic_publish"] = unconfirmed

    def send(self, type: str, *args: Any, **fields: Any) -> None:
        """Send an event. As Celery's, but a worker's own events are not retried."""
        if type.startswith("worker-"):
            fields["retry"] = False
        super().send(type, *args, **fields)
