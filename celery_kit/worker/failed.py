"""Keeps the messages of failed tasks: each is stored beside the dead letters, whole, before it is acknowledged.

A task that ends in FAILURE can so be sent again, with its id, its root id and its headers, once its cause is gone: `make dead`.
The requests of `celery_kit/pools/failed.py` hand over what has failed. A thread stores all that has come together, over a
connection of the app's pool, so that neither the loop nor a task waits for the broker. FAILED_MOST and FAILED_EXPIRES bound how
many there are, and for how long; FAILED_MOST=0, or `keep_failed = False` on a task, keeps none.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from celery import bootsteps
from celery.exceptions import OperationalError
from celery.utils import imports
from celery.worker.request import Request as CelerysRequest
from kombu.exceptions import ConnectionLimitExceeded

from celery_kit import brokers
from celery_kit.base.types import Connection, WorkerConsumer, WorkerRequest
from celery_kit.brokers.contract import DeadLetter, DeadLetters, FailedTasks, moment
from celery_kit.engine.commit import REQUEST, commit
from celery_kit.fixes import needed
from celery_kit.pools.failed import Request
from celery_kit.worker.dead_lettering import by_tag, letter_of

logger = logging.getLogger(__name__)
symbols = vars(imports)  # its function also takes a class, which the stubs do not know

#: How many are stored by one round trip, at most.
AT_ONCE = 50
#: Seconds for which a failed task waits for others: on RabbitMQ, each round trip is a transaction on a quorum queue.
GATHER = 0.02
#: Seconds after which an unused connection goes back to the pool, and between two attempts while the broker is unavailable.
IDLE, RETRY_PAUSE = 5.0, 0.5
#: Errors, besides those of the connection, after which storing is tried again.
MORE_UNAVAILABLE: tuple[type[Exception], ...] = (OperationalError, ConnectionLimitExceeded)


@dataclass(frozen=True)
class Failed:
    """A failed task. `letter` makes its letter, which may ask the broker; `acknowledge` is called once it is stored."""

    request: WorkerRequest
    letter: Callable[[], DeadLetter]
    acknowledge: Callable[[], None]


class Keeper:
    """Stores the failed tasks of a worker. Any thread or greenlet may call `put`."""

    def __init__(self, consumer: WorkerConsumer, letters: DeadLetters) -> None:
        self.consumer, self.letters = consumer, letters
        self._waiting: deque[Failed] = deque()
        self._acknowledgements: deque[Callable[[], None]] = deque()
        self._some = threading.Event()
        self._storing = threading.Lock()
        self._connection: Connection | None = None
        self._store: FailedTasks | None = None
        self._thread: threading.Thread | None = None
        self._stopped = True  # the loop does not run: whoever puts one stores it

    def start(self) -> None:
        """Store in a thread from now on."""
        self._stopped = False
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="failed", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Store what waits. What cannot be stored stays unacknowledged, so that the broker redelivers it."""
        self._stopped = True
        self._flush()
        self._acknowledge()
        with self._storing:
            self._close()

    def put(self, request: WorkerRequest, error: BaseException, traceback: str, then: Callable[[], None]) -> None:
        """Store a request's message, and call `then`, which acknowledges it, once it is stored."""
        message, tags, when = request.message, by_tag(self.consumer), moment()
        reason, worker = described(error), self.consumer.hostname

        def letter() -> DeadLetter:
            return letter_of(message, self.letters.queue_of(message, tags), reason, when, "failed", worker, traceback)

        self._waiting.append(Failed(request, letter, then))
        if self._stopped:
            self._flush()
        else:
            self._some.set()

    def _work(self) -> None:
        while True:
            if not self._some.wait(IDLE):
                with self._storing:
                    self._close()
                self._some.wait()
            self._some.clear()
            if not self._stopped:
                time.sleep(GATHER)  # what fails meanwhile is stored by the same round trip
            self._flush()

    def _flush(self) -> None:
        with self._storing:
            while self._waiting:
                several = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                if self._stored(several):
                    self._acknowledgements.extend(one.acknowledge for one in several)
                    self._have_acknowledged()

    def _have_acknowledged(self) -> None:
        """Acknowledge what was stored, in the loop where that alone uses the connection."""
        loop = self.consumer.hub
        if loop is None or commit.running or self._stopped:
            self._acknowledge()
        else:
            loop.call_soon(self._acknowledge)

    def _acknowledge(self) -> None:
        with suppress(IndexError):  # there are no more
            while True:
                acknowledge = self._acknowledgements.popleft()
                try:
                    acknowledge()
                except Exception:  # the connection is lost, and the broker delivers the message again
                    logger.exception("A message could not be acknowledged")

    def _stored(self, several: Sequence[Failed]) -> bool:
        """Whether these may be acknowledged: they are stored, or the broker refuses them for good."""
        unavailable = (*self.consumer.connection_errors, *MORE_UNAVAILABLE)
        attempts = 0
        while True:
            try:
                self._open().put([(one.request.message, one.letter()) for one in several])
                return True
            except unavailable as error:
                self._drop()
                attempts += 1
                if self._stopped and attempts > 1:
                    logger.error(
                        "%s failed tasks are not stored; their messages were not acknowledged: %r", len(several), error
                    )
                    return False
                if attempts == 2:
                    logger.error("failed tasks cannot be stored; they stay unacknowledged until they are: %r", error)
                if attempts > 1:  # the first time, the connection may only have been closed while it was not used
                    time.sleep(RETRY_PAUSE)
            except Exception:
                self._drop()
                if len(several) > 1:
                    return min([self._stored([one]) for one in several])  # each of them is tried
                (one,) = several
                logger.exception("the failed task %s[%s] is not stored", one.request.name, one.request.id)
                return True

    def _open(self) -> FailedTasks:
        if self._store is None:
            app = self.consumer.app
            self._connection = cast(Connection, app.pool.acquire(block=True, timeout=app.conf.broker_pool_acquire_timeout))
            self._connection.connect()
            self._store = self.letters.failed(app, self._connection)
        return self._store

    def _drop(self) -> None:
        """Give up a connection that has failed."""
        if self._connection:
            with suppress(Exception):
                self._connection.collect()
        self._close()

    def _close(self) -> None:
        store, self._store = self._store, None
        connection, self._connection = self._connection, None
        with suppress(Exception):
            if store:
                store.close()
        if connection:
            connection.release()


def described(error: BaseException) -> str:
    """An exception in one line: its class, and its text if it has one."""
    try:
        text = str(error)
    except Exception as wrong:  # the user's class
        text = f"(its text cannot be read: {type(wrong).__name__})"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def keeping(named: str | type) -> str | type:
    """A task's Request class, changed so that failed tasks are stored. What is no class of Celery's stays as it is."""
    theirs: object = symbols["symbol_by_name"](named)
    if (
        named == REQUEST
        or not isinstance(theirs, type)
        or not issubclass(theirs, CelerysRequest)
        or issubclass(theirs, Request)
    ):
        return named
    return Request if theirs is CelerysRequest else type(theirs.__name__, (Request, theirs), {"__module__": theirs.__module__})


class Step(bootsteps.StartStopStep):
    """Stores the failed tasks of a worker, unless FAILED_MOST is 0 or the kit stores no dead letters on its broker."""

    label = "Failed tasks"
    # Stopped before the last group of acknowledgements is sent, and before the connection is closed.
    requires = ("celery_kit.worker.dead_lettering:DeadLettering", "celery_kit.engine.fast_path:Step")

    keeper: Keeper

    def include_if(self, parent: WorkerConsumer) -> bool:
        """Whether there is a place for them."""
        broker = brokers.room(parent.app.conf.broker_read_url)
        letters = broker.letters() if broker and needed("dead letters") else None
        if letters and parent.app.conf.failed_most:
            self.keeper = Keeper(parent, letters)
            return True
        return False

    def create(self, parent: WorkerConsumer) -> None:
        """Have the requests of all tasks hand over what fails."""
        for task in parent.app.tasks.values():
            if getattr(task, "keep_failed", True):
                vars(task)["Request"] = keeping(task.Request)

    def start(self, parent: WorkerConsumer) -> None:
        """Store in a thread."""
        self.keeper.start()
        Request.keeper = self.keeper

    def stop(self, parent: WorkerConsumer) -> None:
        """Store what waits; what fails later is stored by the thread in which it does."""
        self.keeper.stop()

    shutdown = stop
