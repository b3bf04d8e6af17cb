"""Results first, then their acknowledgements, in groups: a round trip for a group in place of several for a task.

A task that ends leaves its result and its acknowledgement here, and its place in the pool to the next one. The group is written
when it is full or old, and when the worker has nothing else to do; a message is acknowledged once its task's result is stored,
never before. So a crash, or a results server that is away, can make a task run again, but cannot lose it.

It is for late acknowledgement; a pool of processes brings its results to the parent for it
(`celery_kit/engine/commit_child.py`). A result whose acknowledgement does not come by here is stored at once: of a task that is
acknowledged early, or has a Request class of its own. So is every state but STARTED and SUCCESS, and the part of a chord; each
takes what waits before it along. Signals and events are sent when a task ends, up to SECONDS before its result can be read.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

from celery import Celery, states

from celery_kit.pools.interrupt import unbroken

logger = logging.getLogger(__name__)

#: A group is written when it has this many tasks, …
COUNT = 64
#: … when its first one has waited this long, in seconds, …
SECONDS = 0.008
#: … or when its results are this large together, in bytes.
BYTES = 1_000_000
#: A result that a child process hands to its parent is at most this large, in bytes, unless it cannot be stored.
CARRIED = 65_536
#: Successes that a child process remembers to have handed over: as many as its parent may have in a group, and in one before.
HANDED = 2 * COUNT
#: Looks in vain, SECONDS apart, after which the thread that writes what has grown old has to be woken: that costs each task.
IDLE = 25
#: Between two tries while the results server is away, in seconds.
PATIENCE = 0.5

#: The states that one of these must not take the place of; every other one gives way to a success alone.
LASTING = {states.RETRY: (states.SUCCESS, states.FAILURE, states.REVOKED), states.STARTED: (states.SUCCESS, states.REVOKED)}


class Write(NamedTuple):
    """A task's state, as the results server keeps it. `task_id`: whose it is; `expires`: seconds, 0 for never.

    `value` may be a function that makes it: a STARTED is seldom written, for the task has ended by then.
    """

    task_id: str
    value: bytes | str | Callable[[], bytes | str]
    expires: int
    state: str

    @property
    def bytes(self) -> int:
        return 0 if callable(self.value) else len(self.value)

    @property
    def lasting(self) -> tuple[str, ...]:
        """The states that it must not take the place of.

        A task sends its retry first and says RETRY then; a retry without delay may have ended by that time. And a child process
        says a little late that a task has started: its parent may have ended it meanwhile.
        """
        return LASTING.get(self.state, (states.SUCCESS,))

    def of(self, task_id: str) -> "Write":
        """Itself. Raises RuntimeError where it is another task's: no result may go by under a name that is not its own."""
        if self.task_id != task_id:
            raise RuntimeError(f"the result of task {self.task_id} was carried as that of task {task_id}")
        return self


#: The Request class of the tasks whose acknowledgements come by here.
REQUEST = "celery_kit.engine.commit_worker:Request"

#: Stores a group; raises where it could not, and may then be called with the same again.
Store = Callable[[list[Write]], None]


class Commit:
    """The group of a worker process."""

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Begin anew; a child process does, which must not wait for a lock that a thread of its parent held."""
        self._grouping = False
        #: Tasks of this process leave their results and acknowledgements here; a child process's do not.
        self.running = False
        #: In a pool's child process: that it is one, its task, that the task's code has ended and its success is about to come,
        #: and that success, which goes to the parent unless somebody looks before.
        self.child = False
        self.task_id: str | None = None
        self.ending = False
        self.carried: Write | None = None
        #: The last ones that went to the parent: it may not have stored them yet.
        self._handed: dict[str, Write] = {}
        #: That the parent has nothing to put it together with: this process stores it itself.
        self.alone = False
        self._store: Store | None = None
        self._busy: Callable[[], int] = int
        self._more: Callable[[], None] = lambda: None
        self._writes: dict[str, Write] = {}
        self._acks: list[Callable[[], None]] = []
        self._bytes = 0
        self._since: float | None = None  # when the group's first one came
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._flusher: int | None = None
        self._waiting = threading.Event()
        self._away = False
        self._loop: int | None = None
        self._in_loop = False
        self._late: dict[str, bool] = {}  # by a task's name, whether its acknowledgements come by here
        self._lazy = False
        self._sending = False
        self._after: set[Callable[[], None]] = set()

    def start(self, store: Store, busy: Callable[[], int], lazy: bool = False, more: Callable[[], None] = lambda: None) -> None:
        """Make groups from now on, and write them by `store`. `busy()`: how many tasks it has that have not ended.

        `lazy`: the loop's rounds are short - it hands tasks to other processes -, and a group gathers over many of them.
        `more()`: a task has ended, its place is free, and its acknowledgement, which would say so, waits for others.
        """
        self._store, self._busy, self._grouping, self._lazy, self._more = store, busy, True, lazy, more
        self._late = {}
        if not self.running:
            self.running = True
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forget)
            threading.Thread(target=self._watch, name="commit", daemon=True).start()

    def stop(self) -> None:
        """Write what there is; whatever comes later is written as it comes."""
        self._grouping = False
        self._try()

    def takes(self, app: Celery, task_id: str, state: str, request: Any) -> bool:
        """A state of this task may wait for its group: the acknowledgement that must not come before it does so, too.

        A child process holds back the success alone that a task ends with: what follows on it - a callback, a chain - may look
        for it elsewhere, and what the task itself says before its end is for others to see at once.
        """
        if not self._grouping or not self.running or state not in (states.STARTED, states.SUCCESS) or request is None:
            return False
        success = state == states.SUCCESS
        try:
            if request.id != task_id or request.is_eager or (success and request.chord):
                return False
            if self.child:  # the parent has looked at what follows; what it acknowledges itself must be stored by then
                return task_id == self.task_id and (not success or (self.ending and not (request.callbacks or request.chain)))
            name = request.task
        except AttributeError:  # a request of somebody else's, such as celery-batches': it has what Celery's backends look at
            return False
        if (late := self._late.get(name)) is None:
            task = app.tasks.get(name)
            late = self._late[name] = task is not None and bool(task.acks_late) and task.Request == REQUEST
        return late

    def result(self, write: Write) -> None:
        """Take a state into the group. A task's later state takes the place of its earlier one, unless that is to last.

        Only what :meth:`takes` has said may wait; :meth:`store` is for every other state.
        """
        if self.child and write.state == states.SUCCESS:
            if not self._stored_here(write):
                self._carry(write)
            return
        self._take(write)
        if self._bytes >= BYTES:
            self.try_flush()

    def store(self, write: Write) -> None:
        """Store a state at once, and what came before it. Raises, and keeps it, where it cannot be stored."""
        self._take(write)
        self.flush()

    def _take(self, write: Write) -> None:
        with self._lock:
            earlier = self._writes.get(write.task_id)
            if earlier and earlier.state in write.lasting:
                return
            self._writes[write.task_id] = write
            self._bytes += write.bytes
            self._begin()

    def _stored_here(self, write: Write) -> bool:
        """Whether this child process has stored its task's success: one that is large, or that others would not go with."""
        if not self.alone and write.bytes <= CARRIED:
            return False
        self._take(write)
        try:
            self.flush()
        except Exception:
            return False  # its parent goes on trying, and acknowledges the task after that
        return True

    def _carry(self, write: Write) -> None:
        """Hold a success back for the parent process; that the task has started needs no word any more."""
        with self._lock:
            self._writes.pop(write.task_id, None)
            self._bytes = sum(one.bytes for one in self._writes.values())
            if not self._writes:
                self._since = None
            self.carried = write

    def hand_over(self, task_id: str) -> Write | None:
        """The success of this task, which the parent stores; None where this process has stored it."""
        if write := self.carried:
            self._handed[task_id] = write.of(task_id)
            self.carried = None
            if len(self._handed) > HANDED:
                del self._handed[next(iter(self._handed))]
        return write

    def end(self) -> None:
        """The child's task has ended: store what is left of it, before the parent hears of that."""
        self.task_id, self.ending = None, False
        if self._since is not None or self.carried:
            self.try_flush()
            self.carried = None

    def look(self, task_ids: Iterable[str]) -> None:
        """Somebody in this process is about to look at these tasks: what it has said of them is stored first."""
        if self._handed:
            for write in [self._handed.pop(one) for one in task_ids if one in self._handed]:
                self._take(write)
        self.try_flush()

    def look_by_hand(self) -> None:
        """Somebody takes the results server's client itself; it may be the garbage collector, within :meth:`_take`."""
        if not self._lock.locked():
            self.try_flush()

    @property
    def done(self) -> int:
        """Tasks that have ended and wait for their group: they take no place in the worker any more."""
        return 0 if self._away else len(self._acks)

    @property
    def lone(self) -> bool:
        """The task that is about to begin is the only one that this worker has."""
        return self._busy() <= 1

    def ack(self, send: Callable[[], None]) -> None:
        """Call `send` when every result that came before it is stored."""
        with self._lock:
            self._acks.append(send)
            full = len(self._acks) >= COUNT
            self._begin()
        if not full and self._grouping:
            if threading.get_ident() == self._loop:  # a pool that runs its tasks in the loop: its next tick is near
                self._in_loop = True
                return
            if self._busy():
                self._more()
                return
        self.try_flush()

    def tick(self) -> None:
        """The worker's loop has handled what was there, and is about to wait."""
        self._loop = threading.get_ident()
        if self._in_loop and not (self._lazy and self._gathers()):
            self._in_loop = False
            self.try_flush()

    def _gathers(self) -> bool:
        """More tasks are about to end than have ended, and these can wait for them."""
        young = self._since is not None and time.monotonic() - self._since < SECONDS
        return young and len(self._acks) < min(COUNT, self._busy())

    def gather(self, send: Callable[[], None]) -> bool:
        """True, and `send` is called after the last of them, while this thread sends a group's acknowledgements; else False."""
        gathers = self._sending and self._flusher == threading.get_ident()
        if gathers:
            self._after.add(send)
        return gathers

    @unbroken
    def flush(self) -> None:
        """Write the group, then send its acknowledgements. Raises, and keeps both, where it cannot be written."""
        me = threading.get_ident()
        if self._flusher == me or (self._since is None and self.carried is None and not self._flushing.locked()):
            return
        with self._flushing:
            self._flusher = me
            try:
                if held := self.carried:
                    self._take(held)
                self._flush()
                if self.carried is held:  # else its parent goes on trying
                    self.carried = None
            finally:
                self._flusher = None

    def try_flush(self) -> None:
        """Write the group, unless the results server is away: then the group waits for it, and tasks go on."""
        if not self._away:
            self._try()

    def _try(self) -> None:
        try:
            self.flush()
        except Exception as error:
            if not self._away:
                logger.error("Results cannot be stored, and their tasks stay unacknowledged until they are: %r", error)
            self._away = True

    def _begin(self) -> None:
        if self._since is None:
            self._since = time.monotonic()
            if not self._waiting.is_set():
                self._waiting.set()

    def _flush(self) -> None:
        with self._lock:
            writes, self._writes = self._writes, {}
            acks, self._acks = self._acks, []
            self._bytes, self._since = 0, None
        try:
            if writes and self._store:
                self._store(list(writes.values()))
        except BaseException:
            with self._lock:
                for task_id, write in self._writes.items():
                    if task_id not in writes or writes[task_id].state not in write.lasting:
                        writes[task_id] = write
                self._writes = writes
                self._acks[:0] = acks
                self._bytes = sum(write.bytes for write in writes.values())
                self._begin()
            raise
        if self._away:
            self._away = False
            logger.warning("Results are stored again")
        self._send(acks)

    def _send(self, acks: list[Callable[[], None]]) -> None:
        self._sending = True
        try:
            _call_all(acks)
        finally:
            self._sending = False
            after, self._after = self._after, set()
            _call_all(after)

    def _watch(self) -> None:
        """Write what has grown old: whoever else would may be busy with a long task."""
        idle = 0
        while True:
            since = self._since
            if since is None and (idle := idle + 1) < IDLE:
                time.sleep(SECONDS)
            elif since is None:
                self._waiting.clear()
                if self._since is None:
                    self._waiting.wait()
                idle = 0
            elif self._away:
                time.sleep(PATIENCE)
                self._try()
            elif (left := since + SECONDS - time.monotonic()) > 0:
                time.sleep(left)
            else:
                idle = 0
                self._try()


def _call_all(sends: Iterable[Callable[[], None]]) -> None:
    """Call each of them, whatever one raises: the others are other tasks'. Raises what is no Exception, in the end."""
    struck: list[Callable[[], None]] = []
    raised: BaseException | None = None
    for send in sends:
        try:
            send()
        except Exception:  # its connection is gone, and the broker delivers the message again
            logger.exception("A message could not be acknowledged")
        except BaseException as error:  # such as a time limit's, of the task that runs in this greenlet
            struck.append(send)
            raised = error
    for send in struck:  # it acknowledges once, and may have come to that
        with suppress(BaseException):
            send()
    if raised:
        raise raised


#: This process's.
commit = Commit()
