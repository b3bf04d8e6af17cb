"""A file that says how long the worker can be taken for healthy; written by its own loop, read by `deploy/healthy.sh`.

HEARTBEAT_FILE names it; without that variable nothing is written. It holds the process id and a time, in seconds since the
machine's start (a step of the clock must not look like a frozen worker), and is there only while the worker is connected.
A worker that waits for its broker is alive, but not ready: HEARTBEAT_FILE.alive holds its process id from start to end.

The time is HEARTBEAT_SECONDS ahead of the loop's last round. Two exceptions:

- A pool whose loop rests during a task (solo) moves it ahead by the task time limit when the task begins; by a year where
  there is none.
- A worker that took nothing for HEARTBEAT_SECONDS while a queue of its own held messages and it had room for one is stuck,
  whatever it thinks of its connection (celery #8030, #9054, #10205): the time is 0.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery, bootsteps, signals
from celery.utils.log import get_logger

from celery_kit.base import times
from celery_kit.base.refusals import whole_number
from celery_kit.fixes import delayed_messages
from celery_kit.pools.table import row

logger = get_logger(__name__)
#: Folders in which nothing could be written at the last try: that is said once, not every two seconds.
_unwritable: set[Path] = set()
EVERY = 2.0  # seconds
#: Seconds between two looks at whether a worker that starts can be sent to.
SOON = 0.05
#: So that a broker that does not answer cannot hold up the worker's loop; py-amqp waits for ever otherwise.
BOUNDED = {"read_timeout": 3, "write_timeout": 3, "socket_timeout": 3}


def heartbeat_seconds() -> int:
    """How old a sign of life may be, in seconds."""
    return whole_number("HEARTBEAT_SECONDS", os.environ.get("HEARTBEAT_SECONDS") or "30", 5, 3_600, "seconds")


def now() -> int:
    """Seconds since the machine started, as /proc/uptime has them."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME)) if hasattr(time, "CLOCK_BOOTTIME") else int(time.monotonic())


def write(file: Path, until: int) -> None:
    """Say that this process is healthy until then."""
    put(file, f"{os.getpid()} {until}\n")


def put(file: Path, text: str) -> None:
    """Write in one piece: a reader never sees half of it. What cannot be written - a full disk, a read-only root - is no reason
    to end: the file gets old, and the probe says so.
    """
    draft = file.with_name(f"{file.name}.{os.getpid()}.draft")
    try:
        draft.write_text(text)
        draft.replace(file)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        if file.parent not in _unwritable:
            _unwritable.add(file.parent)
            logger.warning(
                "no sign of life can be left in %s (%s): the work goes on, and the probe says that this process is unhealthy; "
                "make it writable - in a container by a tmpfs or a volume - or name another file in HEARTBEAT_FILE",
                file, error.strerror or error,
            )  # fmt: skip
    else:
        _unwritable.discard(file.parent)


class Progress:
    """Whether a worker that has room for a message takes one, where there is one. Asks the broker only when nothing comes."""

    def __init__(self, parent: Any, seconds: int) -> None:
        self.parent, self.seconds = parent, seconds
        self.queues = set(parent.app.amqp.queues.consume_from)  # also those that somebody cancels
        self.taken, self.since, self.looked = -1, now(), now()
        self.connection: Any = None

    def stuck(self) -> bool:
        state, seen = self.parent.controller.state, now()
        taken = state.all_total_count[0]
        if taken != self.taken or self.full(state):
            self.taken, self.since = taken, seen
        elif seen - self.looked >= self.seconds / 3:
            self.looked = seen
            if not self.waiting():
                self.since = seen
        return seen - self.since > self.seconds

    def full(self, state: Any) -> bool:
        """It holds all that it may, or its rate limits hold it back."""
        most = self.parent.qos.value if self.parent.qos else 0
        limited = any(bucket and bucket.contents for bucket in self.parent.task_buckets.values())
        return limited or bool(most and len(state.requests) >= most)

    def waiting(self) -> bool:
        """Messages wait for it. False where the broker does not say: that is not the worker's fault."""
        self.queues |= set(self.parent.app.amqp.queues.consume_from)
        try:
            if not self.connection:
                self.connection = self._connect()
            return any(self.depth(queue) for queue in self.queues)
        except Exception as error:
            logger.warning("the broker was not asked for waiting messages: %r", error)
            self.close()
            return False

    def _connect(self) -> Any:
        """To the broker that the worker consumes from, which of several is the one that answered it."""
        consumers = self.parent.connection
        return consumers.clone(connect_timeout=3, heartbeat=0, transport_options={**consumers.transport_options, **BOUNDED})

    def depth(self, queue: str) -> int:
        with self.connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except self.connection.channel_errors:  # it is not there
                return 0

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection:
            connection.collect(socket_timeout=1)


class Heartbeat(bootsteps.StartStopStep):
    """Write the file as long as the consumer is connected; take it away when it is not.

    Source: Celery's user guide, "Extensions and Bootsteps".
    """

    # The last step before the loop: whoever sees the file may send. Where the broker delays tasks, one that comes before its
    # queue is bound to the delayed delivery is lost (celery_kit/fixes/delayed_messages.py says when it is); others wait for a
    # broker that becomes unavailable meanwhile.
    requires = (
        *(
            f"celery.worker.consumer.{step}"
            for step in ("tasks:Tasks", "delayed_delivery:DelayedDelivery", "heart:Heart", "control:Control")
        ),
        "celery_kit.worker.set_aside:SetAside",
    )

    def __init__(self, parent: Any, **options: Any) -> None:
        super().__init__(parent, **options)
        self.parent = parent
        self.file = Path(os.environ.get("HEARTBEAT_FILE", ""))
        self.enabled = self.file != Path()
        self.seconds = heartbeat_seconds()
        self.timer: Any = None
        self.progress: Progress | None = None
        self.was_stuck = False
        if self.enabled:
            parent.on_connection_error_after_connected = self._lost(parent, parent.on_connection_error_after_connected)
            put(self.file.with_name(self.file.name + ".alive"), f"{os.getpid()}\n")
            if (pool := row(parent.pool)) and not pool.answers_while_busy:
                signals.task_prerun.connect(self._begins, weak=False)

    def start(self, parent: Any) -> None:
        self.progress = Progress(parent, self.seconds)
        self.timer = parent.timer.call_repeatedly(EVERY, self._tick)
        self._tick()

    def _lost(self, parent: Any, celerys: Callable[[Exception], None]) -> Callable[[Exception], None]:
        """Say so before Celery closes the connection: on a dead one that takes it seconds."""

        def lost(error: Exception) -> None:
            self.stop(parent)
            celerys(error)

        return lost

    def _tick(self) -> None:
        if self.timer is None:  # the timers of green pools fire once more after they were cancelled
            return
        if delayed_messages.makes(self.parent):
            self.parent.timer.call_after(SOON, self._tick)
            return
        stuck = bool(self.progress and self.progress.stuck())
        if stuck and not self.was_stuck:
            logger.error("not healthy: messages wait, and for %s s this worker took none", self.seconds)
        self.was_stuck = stuck
        write(self.file, 0 if stuck else now() + self.seconds)

    def _begins(self, task: Any = None, **_: Any) -> None:
        if self.timer is not None:
            own = getattr(getattr(task, "request", None), "time_limit", None)  # of this message alone
            limit = own or getattr(task, "time_limit", None) or self.parent.app.conf.task_time_limit or times.MOST
            write(self.file, now() + int(limit) + self.seconds)

    def stop(self, parent: Any) -> None:
        if self.timer is not None:
            # Green pools give the greenlet of the first round, which is false and cannot be cancelled once that is over.
            getattr(self.timer, "entry", self.timer).cancel()
            self.timer = None
        if self.progress:
            self.progress.close()
            self.progress = None
        with suppress(OSError):
            self.file.unlink()

    shutdown: Callable[..., None] = stop


def install(app: Celery) -> None:
    """Give every worker of `app` the heartbeat."""
    app.steps["consumer"].add(Heartbeat)
