"""The worker's heartbeat file: until when the worker counts as healthy. `deploy/healthy.sh` reads it.

HEARTBEAT_FILE names the file; without that variable nothing is written. The file holds the process id and a time, in seconds
since the machine's start, so that a step of the clock does not look like a frozen worker. It exists only while the worker is
connected. A worker that waits for its broker is alive but not ready: HEARTBEAT_FILE.alive holds the process id from start to
exit.

The worker's own loop writes the time, HEARTBEAT_SECONDS ahead. There are two exceptions:

- A pool whose loop stops during a task (solo) sets it ahead when a task begins: by the task time limit, or by a year. A task
  that may take longer than the file says writes it; one that may take less writes it only if the last write is LEAST old.
- The time is 0 for a worker that is stuck: it took no message for HEARTBEAT_SECONDS, while one of its queues held messages and
  it had room for one, whatever state its connection seems to be in (celery #8030, #9054, #10205).
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from celery import Celery, bootsteps, signals
from celery.utils.log import get_logger

from celery_kit.base import times
from celery_kit.base.refusals import whole_number
from celery_kit.base.types import AnyTask, Channel, Connection, TimerEntry, WorkerConsumer, WorkerState
from celery_kit.fixes import delayed_messages
from celery_kit.pools.table import row

logger = get_logger(__name__)
#: Folders in which the last write failed, so that the log has it once and not every two seconds.
_unwritable: set[Path] = set()
EVERY = 2.0  # seconds
#: Seconds between two writes that shorten the time. Opening, writing and renaming the file costs more than a quick task.
LEAST = 0.5
#: Seconds between two checks of whether a starting worker is ready for messages.
SOON = 0.05
#: Timeouts in seconds, so that a broker that does not answer cannot block the worker's loop. py-amqp would wait for ever.
BOUNDED = {"read_timeout": 3, "write_timeout": 3, "socket_timeout": 3}


def heartbeat_seconds() -> int:
    """How old a heartbeat may be, in seconds."""
    return whole_number("HEARTBEAT_SECONDS", os.environ.get("HEARTBEAT_SECONDS") or "30", 5, 3_600, "seconds")


def now() -> int:
    """Seconds since the machine started, like /proc/uptime."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME)) if hasattr(time, "CLOCK_BOOTTIME") else int(time.monotonic())


def write(file: Path, until: int) -> None:
    """Note that this process is healthy until a time of :func:`now`."""
    put(file, f"{os.getpid()} {until}\n")


def put(file: Path, text: str) -> None:
    """Write a file in one step, so that a reader never sees half of it. Raises nothing.

    Where it cannot be written - a full disk, a read-only root - the file gets old, and the probe reports that.
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
                "no heartbeat can be written to %s (%s): work goes on, and the probe reports this process as unhealthy; "
                "make it writable - in a container by a tmpfs or a volume - or name another file in HEARTBEAT_FILE",
                file, error.strerror or error,
            )  # fmt: skip
    else:
        _unwritable.discard(file.parent)


class Progress:
    """Whether a worker that has room for a message takes one. Asks the broker only while the worker gets none."""

    def __init__(self, parent: WorkerConsumer, seconds: int) -> None:
        self.parent, self.seconds = parent, seconds
        self.queues = set(parent.app.amqp.queues.consume_from)  # remembered even if remote control cancels one
        self.taken, self.since, self.looked = -1, now(), now()
        self.connection: Connection | None = None

    def stuck(self) -> bool:
        """Whether it has taken no message for `seconds`, although messages waited and it had room."""
        state, seen = self.parent.controller.state, now()
        taken = state.all_total_count[0]
        if taken != self.taken or self.full(state):
            self.taken, self.since = taken, seen
        elif seen - self.looked >= self.seconds / 3:
            self.looked = seen
            if not self.waiting():
                self.since = seen
        return seen - self.since > self.seconds

    def full(self, state: WorkerState) -> bool:
        """Whether it holds as many messages as it may, or waits for a rate limit."""
        most = self.parent.qos.value if self.parent.qos else 0
        limited = any(bucket and bucket.contents for bucket in self.parent.task_buckets.values())
        return limited or bool(most and len(state.requests) >= most)

    def waiting(self) -> bool:
        """Whether messages wait for it. False if the broker cannot be asked, which is not the worker's fault."""
        self.queues |= set(self.parent.app.amqp.queues.consume_from)
        try:
            if not self.connection:
                self.connection = self._connect()
            return any(self.depth(self.connection, queue) for queue in self.queues - self.parent.paused)
        except Exception as error:
            logger.warning("the broker could not be asked for waiting messages: %r", error)
            self.close()
            return False

    def _connect(self) -> Connection:
        """A connection to the broker that the worker consumes from, of several the one that it is connected to."""
        consumers = self.parent.connection
        options = {**(consumers.transport_options or {}), **BOUNDED}
        return consumers.clone(connect_timeout=3, heartbeat=0, transport_options=options)

    @staticmethod
    def depth(connection: Connection, queue: str) -> int:
        """How many messages wait in a queue; 0 if it does not exist."""
        channel: Channel
        with connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0

    def close(self) -> None:
        """Drop the connection."""
        connection, self.connection = self.connection, None
        if connection:
            connection.collect(socket_timeout=1)


class Heartbeat(bootsteps.StartStopStep):
    """Write the file while the consumer is connected, and delete it when it is not.

    Source: Celery's user guide, "Extensions and Bootsteps".
    """

    # The last step before the loop, because other processes send once they see the file. Where the broker delays tasks, a task
    # that comes before its queue is bound for delayed delivery would be lost (celery_kit/fixes/delayed_messages.py knows when
    # it is bound).
    requires = (
        *(
            f"celery.worker.consumer.{step}"
            for step in ("tasks:Tasks", "delayed_delivery:DelayedDelivery", "heart:Heart", "control:Control")
        ),
        "celery_kit.worker.dead_lettering:DeadLettering",
    )

    def __init__(self, parent: WorkerConsumer, **options: object) -> None:
        super().__init__(parent, **options)
        self.parent = parent
        self.file = Path(os.environ.get("HEARTBEAT_FILE", ""))
        self.enabled = self.file != Path()
        self.seconds = heartbeat_seconds()
        self.timer: TimerEntry | None = None
        self.progress: Progress | None = None
        self.was_stuck = False
        self.until = self.written = 0.0  # the time in the file; when it was written, in seconds of the monotonic clock
        if self.enabled:
            parent.on_connection_error_after_connected = self._lost(parent, parent.on_connection_error_after_connected)
            put(self.file.with_name(self.file.name + ".alive"), f"{os.getpid()}\n")
            if (pool := row(parent.pool)) and not pool.answers_while_busy:
                signals.task_prerun.connect(self._begins, weak=False)

    def start(self, parent: WorkerConsumer) -> None:
        """Write the file now, and every two seconds."""
        self.progress = Progress(parent, self.seconds)
        self.timer = parent.timer.call_repeatedly(EVERY, self._tick)
        self._tick()

    def _lost(self, parent: WorkerConsumer, celerys: Callable[[Exception], None]) -> Callable[[Exception], None]:
        """Celery's handler of a lost connection, after the file is deleted: closing a dead connection takes seconds."""

        def lost(error: Exception) -> None:
            self.stop(parent)
            celerys(error)

        return lost

    def _tick(self) -> None:
        if self.timer is None:  # the timers of green pools fire once more after they are cancelled
            return
        if delayed_messages.makes(self.parent):
            self.parent.timer.call_after(SOON, self._tick)
            return
        stuck = bool(self.progress and self.progress.stuck())
        if stuck and not self.was_stuck:
            logger.error("not healthy: messages wait, and for %s s this worker took none", self.seconds)
        self.was_stuck = stuck
        self._write(0 if stuck else now() + self.seconds)

    def _write(self, until: int) -> None:
        self.until, self.written = until, time.monotonic()
        write(self.file, until)

    def _begins(self, task: AnyTask | None = None, **_: object) -> None:
        if self.timer is None:
            return
        own = getattr(getattr(task, "request", None), "time_limit", None)  # for this message only
        limit = own or getattr(task, "time_limit", None) or self.parent.app.conf.task_time_limit or times.MOST
        until = now() + int(limit) + self.seconds
        if until > self.until or (until < self.until and time.monotonic() - self.written >= LEAST):
            self._write(until)

    def stop(self, parent: WorkerConsumer) -> None:
        """Delete the file."""
        if self.timer is not None:
            # Green pools return the greenlet of the first round, which is falsy and cannot be cancelled after that round.
            getattr(self.timer, "entry", self.timer).cancel()
            self.timer = None
        self.until = 0.0
        if self.progress:
            self.progress.close()
            self.progress = None
        with suppress(OSError):
            self.file.unlink()

    shutdown: Callable[..., None] = stop


def install(app: Celery) -> None:
    """Have every worker of `app` write its heartbeat file."""
    app.steps["consumer"].add(Heartbeat)
