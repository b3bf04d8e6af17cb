"""Faults of the event loop that workers of prefork, threads and solo have: it sleeps, waits or grows where it should not."""

from heapq import heappop, heappush
from importlib import import_module
from typing import Any

from celery.app.events import Events as CelerysEvents
from celery.events.dispatcher import EventDispatcher
from kombu.asynchronous.hub import Hub
from kombu.asynchronous.timer import Timer

#: Seconds that the first read of a connection may wait. Not 0: py-amqp loses a frame's first bytes where a non-blocking socket
#: has only those.
DRAIN = 0.001
#: A timer with fewer entries than this is not swept.
FEW = 500


def hub_stall(**_: Any) -> None:
    """Poll without waiting while callbacks are ready.

    A callback that another callback hands to Hub.call_soon, in the loop's own thread, waits until the next poll returns: up to
    a second without traffic. With few messages in flight the next message often arrives only after such a callback (an
    acknowledgement, for one), so a worker drops at random to a fraction of its throughput.
    """
    create: Any = Hub._create_poller
    if create.__module__ == __name__:
        return

    def _create_poller(self: Any) -> None:
        create(self)
        poll = self._poller.poll
        self._poller.poll = lambda timeout: poll(0 if self._ready else timeout)

    Hub._create_poller = _create_poller  # type: ignore[method-assign]


def quick_drain(**_: Any) -> None:
    """Read what has arrived before the loop's first poll, without waiting for more.

    Celery reads the connection once before it polls, because no poll reports what py-amqp has in its buffer, and waits up to
    0.1 s. Nothing comes where the prefetch window is full or the queue is empty; meanwhile no message reaches prefork's
    children.
    """
    loops: Any = import_module("celery.worker.loops")  # only in workers
    drain = loops._quick_drain

    def _quick_drain(connection: Any, timeout: float = DRAIN) -> None:
        drain(connection, min(timeout, DRAIN))

    loops._quick_drain = _quick_drain


def cancelled_timers(**_: Any) -> None:
    """Remove cancelled entries from the worker's timer once there are twice as many entries as the last sweep left.

    A task's time limit is an entry of the timer, which is cancelled when the task ends. kombu keeps a cancelled entry in its
    heap until it is due: half a kilobyte for each task of the last `task_time_limit` seconds.
    """
    components: Any = import_module("celery.worker.components")  # only in workers
    components._Timer = SweptTimer


class SweptTimer(Timer):
    """kombu's timer without its cancelled entries. Entries are added in the loop's thread."""

    _queue: list[Any]
    _sweep_at = 2 * FEW

    def _enter(self, eta: float, priority: int, entry: Any, *more: Any) -> Any:
        if len(self._queue) >= self._sweep_at:
            self._sweep()
        return super()._enter(eta, priority, entry, *more)

    def _sweep(self) -> None:
        """Sweep entry by entry, in the same list: the loop's iterator holds it, and another thread may add to it meanwhile."""
        live = []
        while self._queue:
            if not (one := heappop(self._queue)).entry.canceled:
                live.append(one)
        for one in live:
            heappush(self._queue, one)
        self._sweep_at = 2 * max(len(live), FEW)


class Events(CelerysEvents):
    """Celery's events of an app, which a worker sends unconfirmed and once.

    With confirm_publish each event waits for the broker's confirm, in the loop's thread and without a timeout. And where the
    broker has become unavailable, a heartbeat event that is due before the loop has noticed is retried until the broker is
    back, so that the loop itself never learns of it. Events only report, and nothing depends on one: what is not sent goes with
    the next connection.
    """

    dispatcher_cls = "celery_kit.fixes.event_loop:Dispatcher"


Base: Any = EventDispatcher  # the stubs know little of it


class Dispatcher(Base):  # type: ignore[misc]
    """Celery's dispatcher; see :class:`Events`."""

    def enable(self) -> None:
        super().enable()
        if self.channel is None:  # a connection of its own; a producer's channel confirms tasks, too
            channel: Any = self.producer.channel
            channel.basic_publish = getattr(channel, "_basic_publish", channel.basic_publish)

    def send(self, type: str, *args: Any, retry: bool = False, **fields: Any) -> Any:
        return super().send(type, *args, retry=retry and not type.startswith("worker-"), **fields)
