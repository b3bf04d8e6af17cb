"""Task events: made without Celery's general path, and sent in groups by a timer, on every pool.

A worker of Celery's has its loop send what there is at each turn, three events for a quick task; on green pools each event
goes alone. Flower and other receivers get the same events (`task-multi`). Source: celery/events/dispatcher.py,
celery/worker/consumer/events.py 5.7.0.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import time

from celery import bootsteps
from celery.events.dispatcher import EventDispatcher
from celery.utils.time import utcoffset
from kombu.clocks import LamportClock

from celery_kit.base.types import Timer, WorkerConsumer

#: Seconds after which events are sent, and the number that does not wait for that.
AFTER, MOST = 0.1, 500
GROUP = "task"
#: What `send` takes beside an event's own fields. Who gives one of these gets Celery's own.
OPTIONS = frozenset(("blind", "utcoffset", "retry", "retry_policy", "Event"))
CLOSE: int = vars(bootsteps)["CLOSE"]  # unknown to celery-types


class Dispatcher(EventDispatcher):
    """Celery's dispatcher. Events of tasks that go in groups are made here, as celery.events.event.Event makes them."""

    buffer_group: set[str]
    buffer_limit: int
    on_send_buffered: Callable[[], None] | None
    hostname: str
    pid: int
    clock: LamportClock
    mutex: AbstractContextManager[object]
    producer: object
    _group_buffer: dict[str, list[dict[str, object]]]
    _publish: Callable[[object, object, str], object]

    def send(self, type: str, *args: object, **fields: object) -> None:
        """Send an event, or put it into its group. `type`: such as `task-started`. As Celery's."""
        grouped = GROUP in self.buffer_group and type.startswith("task-")
        if not grouped or args or not OPTIONS.isdisjoint(fields):
            super().send(type, *args, **fields)  # type: ignore[arg-type]
        elif self.enabled and not (self.groups and GROUP not in self.groups):
            clock = self.clock.forward()
            about = {"hostname": self.hostname, "utcoffset": utcoffset(), "pid": self.pid, "clock": clock, "timestamp": time()}
            group = self._group_buffer[GROUP]
            group.append({**about, **fields, "type": type})
            if len(group) >= self.buffer_limit:
                self.flush()
            elif self.on_send_buffered:
                self.on_send_buffered()

    def collect(self, timer: Timer) -> None:
        """Collect the events of tasks from now on, and have the timer send them."""
        self.buffer_group, self.buffer_limit, self.on_send_buffered = {GROUP}, MOST, _soon(timer, self.flush)

    def flush(self, errors: bool = True, groups: bool = True) -> None:
        """Send what is collected. As Celery's since 5.7: before, events that a thread added meanwhile were lost."""
        super().flush(errors, groups=False)
        with self.mutex:
            if groups and self.producer and (group := self._group_buffer[GROUP]):
                batch = group[:]
                self._publish(batch, self.producer, f"{GROUP}.multi")
                del group[: len(batch)]


class Step(bootsteps.StartStopStep):
    """Has a worker's events of tasks collected, from each new connection on."""

    requires = ("celery.worker.consumer.events:Events",)

    def start(self, parent: WorkerConsumer) -> None:
        """Begin."""
        if parent.event_dispatcher:
            parent.event_dispatcher.collect(parent.timer)

    def stop(self, parent: WorkerConsumer) -> None:
        """Send what there is, if the worker is stopping. A connection that is lost could not take it."""
        if parent.event_dispatcher and parent.blueprint.state == CLOSE:
            parent.event_dispatcher.flush()


def _soon(timer: Timer, flush: Callable[[], None]) -> Callable[[], None]:
    """A function whose first call has `flush` called once, AFTER seconds later."""
    pending: list[bool] = []

    def run() -> None:
        pending.clear()
        flush()

    def ask() -> None:
        if not pending:
            pending.append(True)
            timer.call_after(AFTER, run)

    return ask
