"""Faults of a worker's remote control queue, the mailbox of its pidbox."""

import time
from importlib import import_module
from threading import Event
from typing import Protocol

from celery.utils.log import get_logger
from celery.worker import pidbox
from kombu.exceptions import ContentDisallowed, DecodeError

from celery_kit.base.types import Callback, Connection, Message, TimerEntry, WorkerConsumer

logger = get_logger(__name__)
#: Seconds between two attempts.
EVERY = 1.0
LOCKED = 405
TAKEN = (
    "the broker has the name %s locked for another worker, or for one that it still takes for alive; "
    "give each worker a name of its own: --hostname NAME@%%h"
)


def locked_mailbox(**_: object) -> None:
    """Have a worker consume tasks at once, and its remote control queue (pidbox) as soon as that is free.

    That queue is exclusive. RabbitMQ answers 405, RESOURCE_LOCKED, as long as it takes the worker's lost connection for alive,
    for two to three heartbeat intervals. Celery restarts its consumer until then. On green pools, where the mailbox has a
    connection of its own, Celery gives remote control up for good. The broker never notices that such a connection is lost,
    because it has no heartbeats; here it has.

    A name that another worker has is refused as before, with a line that says what to do: only a worker that had the mailbox
    waits for it.
    """
    vars(pidbox).update(Pidbox=Pidbox, gPidbox=GreenPidbox)


def unread_events(**_: object) -> None:
    """Have a worker ignore another worker's event that it cannot read, or does not accept, with a line.

    Celery reads the name of the sender from the event itself if no header has it, and does not expect an error there, which
    ends the worker's connection. Source: celery/worker/consumer/gossip.py, Gossip.on_message.
    """
    gossip = import_module("celery.worker.consumer.gossip").Gossip  # only in workers
    celerys: Callback = gossip.on_message
    if celerys.__module__ == __name__:
        return

    def on_message(self: object, prepare: object, message: Message) -> object:
        try:
            return celerys(self, prepare, message)
        except (ContentDisallowed, DecodeError, KeyError, TypeError) as error:
            logger.error("an event is ignored: %r", error)
            return None

    gossip.on_message = on_message


class _Mailbox(Protocol):
    """`had`: it has had its queue. `told`: that the name is taken was logged."""

    told: bool

    @property
    def had(self) -> bool: ...

    @property
    def waits(self) -> object: ...

    @property
    def hostname(self) -> str: ...


def _ours(box: _Mailbox, error: BaseException) -> bool:
    """Whether the error says that the queue is locked, and it was this worker's."""
    if getattr(error, "code", None) != LOCKED:
        return False
    if not box.had:
        if not box.told:
            box.told = True
            logger.error(TAKEN, box.hostname)
        return False
    if not box.waits:
        logger.warning("remote control waits: the broker still has its queue locked for the lost connection")
    return True


class _Reader(Protocol):
    """A consumer, or the node that it is for."""

    on_decode_error: Callback


class _Careful:
    """A mixin for a mailbox: what is no command is not handled.

    Celery's handler fails, and opens the mailbox anew; with kombu 5.6 on Redis, a solo worker then takes no more tasks.
    """

    def on_message(self, body: object, message: Message) -> None:
        """Handle a command as Celery does. Log what is none."""
        if isinstance(body, dict):
            super().on_message(body, message)  # type: ignore[misc]
        else:
            logger.error("remote control: %s is no command", type(body).__name__)


class Pidbox(_Careful, pidbox.Pidbox):
    """Celery's, which retries by the worker's timer."""

    had = told = False
    waits: TimerEntry | None = None
    hostname: str
    node: _Reader
    consumer: _Reader
    _close_channel: Callback

    def start(self, c: WorkerConsumer) -> None:
        """Consume the queue, or try again while it is locked. Raises what Celery's does."""
        self._try(c, c.connection)

    def _try(self, c: WorkerConsumer, connection: Connection) -> None:
        if c.connection is not connection:
            return
        try:
            super().start(c)
        except connection.channel_errors as error:
            if not _ours(self, error):
                raise
            self._close_channel(c)  # py-amqp has reopened it
            self.waits = c.timer.call_after(EVERY, self._try, (c, connection))
        else:
            self.had, self.waits = True, None
            self.consumer.on_decode_error = self.node.on_decode_error  # Celery takes that of tasks: a command is no dead letter

    def on_stop(self) -> None:
        """Try no more."""
        if self.waits:
            self.waits.cancel()
            self.waits = None


class GreenPidbox(_Careful, pidbox.gPidbox):
    """Celery's for green pools, which retries in its own greenlet. That also sends its connection's heartbeats."""

    had = told = waits = False
    hostname: str
    _resets: int
    _do_reset: Callback

    def loop(self, c: WorkerConsumer) -> None:
        """Answer commands until the worker stops or loses its connection.

        A worker that consumes nothing, because its queues are paused, reads nothing from its connection, and does not notice
        that it is lost: the mailbox connects again by itself then.
        """
        shutdown = self._node_shutdown = Event()
        stopped = self._node_stopped = Event()
        try:
            while not shutdown.is_set() and c.connection:
                try:
                    self._answer(c, shutdown)
                except c.connection_errors as error:
                    if c.task_consumer is None or c.task_consumer.queues:
                        raise
                    logger.warning("pidbox: the connection is lost: %r", error)
                    time.sleep(EVERY)
        finally:
            stopped.set()

    def _answer(self, c: WorkerConsumer, shutdown: Event) -> None:
        resets = self._resets
        with c.connection_for_read(heartbeat=c.amqheartbeat) as connection:
            logger.info("pidbox: Connected to %s.", connection.as_uri())
            self._open(c, connection, shutdown)
            while not shutdown.is_set() and c.connection:
                if resets < self._resets:
                    resets = self._resets
                    self._do_reset(c, connection)
                try:
                    connection.drain_events(timeout=1.0)
                except TimeoutError as error:
                    if error.errno:  # not the timeout: TCP has given the connection up
                        raise
                connection.heartbeat_check(c.amqheartbeat_rate)

    def _open(self, c: WorkerConsumer, connection: Connection, shutdown: Event) -> None:
        while not shutdown.is_set() and c.connection:
            try:
                self._do_reset(c, connection)
            except connection.channel_errors as error:
                if not _ours(self, error):
                    raise
                self.waits = True
                time.sleep(EVERY)
                connection.heartbeat_check(c.amqheartbeat_rate)
            else:
                self.had, self.waits = True, False
                return
