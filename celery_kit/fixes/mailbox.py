"""Faults of a worker's remote control queue, the mailbox of its pidbox."""

import time
from importlib import import_module
from threading import Event
from typing import Any

from celery.utils.log import get_logger

logger = get_logger(__name__)
#: Seconds between two attempts.
EVERY = 1.0
LOCKED = 405
TAKEN = (
    "the broker keeps the name %s for another worker, or for one that it still takes for alive; "
    "give each worker a name of its own: --hostname NAME@%%h"
)


def locked_mailbox(**_: Any) -> None:
    """Have a worker consume tasks at once and its remote control queue (pidbox) when that is free; and heartbeats on green
    pools.

    That queue is exclusive: RabbitMQ answers 405, RESOURCE_LOCKED, as long as it takes the worker's lost connection for alive,
    two to three heartbeat intervals. Celery restarts its consumer until then. On green pools, where the mailbox has a
    connection of its own, it gives remote control up for good, and the broker never notices, for that connection has no
    heartbeats.

    A name that another worker has is refused as before, in words that say what to do: only who had the mailbox waits for it.
    """
    pidbox: Any = import_module("celery.worker.pidbox")  # only in workers
    if not hasattr(pidbox.Pidbox, "waits"):
        pidbox.Pidbox, pidbox.gPidbox = _waiting(pidbox.Pidbox), _waiting_green(pidbox.gPidbox)


def _ours(box: Any, error: BaseException) -> bool:
    """Whether it is the mailbox that this worker has had."""
    if getattr(error, "code", None) != LOCKED:
        return False
    if not box.had:
        if not box.told:
            box.told = True
            logger.error(TAKEN, box.hostname)
        return False
    if not box.waits:
        logger.warning("remote control waits: the broker still keeps its queue for the connection that was lost")
    return True


def _waiting(celerys: Any) -> Any:
    class Pidbox(celerys):  # type: ignore[misc]
        """Retries by the worker's timer."""

        had = told = False
        waits: Any = None

        def start(self, c: Any) -> None:
            self._try(c, c.connection)

        def _try(self, c: Any, connection: Any) -> None:
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

        def on_stop(self) -> None:
            if self.waits:
                self.waits.cancel()
                self.waits = None

    return Pidbox


def _waiting_green(celerys: Any) -> Any:
    class GreenPidbox(celerys):  # type: ignore[misc]
        """Retries in its own greenlet, which also sends its connection's heartbeats."""

        had = told = waits = False

        def loop(self, c: Any) -> None:
            resets = self._resets
            shutdown = self._node_shutdown = Event()
            stopped = self._node_stopped = Event()
            try:
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
            finally:
                stopped.set()

        def _open(self, c: Any, connection: Any, shutdown: Event) -> None:
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

    return GreenPidbox
