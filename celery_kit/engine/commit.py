"""Group commit: results are stored, then their messages are acknowledged, with one round trip for a group of tasks.

A task that ends leaves its result and its acknowledgement here and frees its slot in the pool. The group is written when it is
full or old, or when the worker is idle. A message is acknowledged after its task's result is stored, never before. So a crash,
or a results server that is unavailable, can make a task run again, but cannot lose it.

Only late acknowledgements are grouped. On a pool of processes the children pass their results to the parent
(`celery_kit/engine/commit_child.py`). Some results are stored at once, with everything that waits before them: those of a
chord, those whose state is neither STARTED nor SUCCESS, and those whose message is not acknowledged here, because the task is
acknowledged early or has a Request class of its own. Signals and events are sent when a task ends, up to SECONDS before its
result can be read.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeAlias

from celery import Celery, states
from celery.app.task import Context

from celery_kit.pools.interrupt import unbroken

logger = logging.getLogger(__name__)

#: A group is written when it has this many tasks, …
COUNT = 64
#: … when one ends, and the first to end has waited this long, in seconds: what waits runs again if the worker is killed. Not on
#: a pool of processes, whose worker would have that to do for every few tasks. …
AGE = 0.002
#: … when its first state has waited this long, in seconds, …
SECONDS = 0.008
#: … or when its results are this large together, in bytes.
BYTES = 1_000_000
#: The largest result that a child process passes to its parent, in bytes, unless it cannot store it.
CARRIED = 65_536
#: Results that a child process remembers after it has passed them on: those of the parent's group and of the one before.
PASSED_ON = 2 * COUNT
#: After so many checks without a result, SECONDS apart, the writing thread sleeps until it is woken, which costs time.
IDLE = 25
#: Seconds between two attempts while the results server is unavailable.
RETRY_PAUSE = 0.5

#: States that a late RETRY or STARTED must not overwrite. Any other state must not overwrite a SUCCESS.
LASTING = {states.RETRY: (states.SUCCESS, states.FAILURE, states.REVOKED), states.STARTED: (states.SUCCESS, states.REVOKED)}

#: A state as the results server stores it, or a function that returns it.
Value: TypeAlias = bytes | str | Callable[[], bytes | str]


class Write(NamedTuple):
    """A task's state, as the results server stores it. `expires`: seconds, 0 for never.

    `value` may be a function that returns it: a STARTED is rarely written, because the task has usually ended by then.
    """

    task_id: str
    value: Value
    expires: int
    state: str

    @property
    def bytes(self) -> int:
        """Its size, 0 as long as the value is a function."""
        return 0 if callable(self.value) else len(self.value)

    @property
    def lasting(self) -> tuple[str, ...]:
        """The states that it must not overwrite.

        A task sends its retry before it reports RETRY, and a retry without delay may have ended by then. A child process
        reports STARTED a little late, and its parent may have terminated the task meanwhile.
        """
        return LASTING.get(self.state, (states.SUCCESS,))

    def of(self, task_id: str) -> "Write":
        """Itself. Raises RuntimeError if it belongs to another task: no result may be stored under another task's id."""
        if self.task_id != task_id:
            raise RuntimeError(f"the result of task {self.task_id} was carried as that of task {task_id}")
        return self


#: The Request class of the tasks whose acknowledgements are grouped.
REQUEST = "celery_kit.engine.commit_worker:Request"

#: Stores a group. Raises if it cannot, and may be called again with the same group.
Store: TypeAlias = Callable[[list[Write]], object]


def store_of(app: Celery) -> Store | None:
    """The method of the app's result backend that stores a group, or None if it has none."""
    store: Store | None = getattr(app.backend, "store_group", None)
    return store


class Commit:
    """The group of a worker process."""

    #: Called with the acknowledgements that are about to be sent together, after their results are stored.
    announce: Callable[[Sequence[Callable[[], None]]], None] | None = None

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        """Reset. A forked child does so, because a thread of its parent may have held a lock."""
        self.running = self._grouping = self._lazy = False
        #: In a child process of a pool: its task, and whether the task's code has returned.
        self.child = self.ending = False
        self.task_id: str | None = None
        #: The last results passed to the parent, which may not have stored them yet.
        self._passed_on: dict[str, Write] = {}
        #: The parent has no other result to batch with this one: the child stores it.
        self.alone = False
        self._store: Store | None = None
        self._busy: Callable[[], int] = int
        self._more: Callable[[], None] = lambda: None
        self._writes: dict[str, Write] = {}
        self._acks: list[Callable[[], None]] = []
        self._bytes = 0
        self._since: float | None = None  # when the group's first result was added, by the monotonic clock
        self._ended = 0.0  # when its first acknowledgement was
        self._lock = threading.Lock()
        self._flushing = threading.RLock()  # the garbage collector may read a result (before_raw_read) at any time
        self._flusher: int | None = None
        self._waiting = threading.Event()
        self._unavailable = self._in_loop = self._sending = False
        self._loop: int | None = None
        self._late: dict[str, bool] = {}  # by a task's name, whether its acknowledgements are grouped
        self._after: set[Callable[[], None]] = set()

    def start(self, store: Store, busy: Callable[[], int], lazy: bool = False, more: Callable[[], None] = lambda: None) -> None:
        """Group results from now on. `store` writes a group; `busy()` returns how many of the worker's tasks have not ended.

        `lazy`: collect a group over many rounds of the loop, which are short where other processes run the tasks.
        `more()` is called when a task has freed its slot but its acknowledgement waits for others.
        """
        self._store, self._busy, self._grouping, self._lazy, self._more = store, busy, True, lazy, more
        self._late = {}
        if not self.running:
            self.running = True
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=self._forget)
            threading.Thread(target=self._watch, name="commit", daemon=True).start()

    def stop(self) -> None:
        """Write the group. Later results are written one by one."""
        self._grouping = False
        self._try()

    def takes(self, app: Celery, task_id: str, state: str, request: Context | None) -> bool:
        """Whether a state of this task may wait for its group, because the acknowledgement that must follow it waits as well.

        In a child process only a final SUCCESS may wait, and only if no callback and no chain follows it, which may read it in
        another process. What a task reports before its end must be readable at once.
        """
        if not self._grouping or not self.running or state not in (states.STARTED, states.SUCCESS) or request is None:
            return False
        success = state == states.SUCCESS
        try:
            if request.id != task_id or request.is_eager or (success and request.chord):
                return False
            if self.child:  # the parent has checked that the task is acknowledged late (commit_child.py, carry)
                return task_id == self.task_id and (not success or (self.ending and not (request.callbacks or request.chain)))
            name = getattr(request, "task", "")
        except AttributeError:  # the request of a package such as celery-batches has only what Celery's backends read
            return False
        if (late := self._late.get(name)) is None:
            task = app.tasks.get(name)
            late = self._late[name] = task is not None and bool(task.acks_late) and task.Request == REQUEST
        return late

    def result(self, write: Write) -> None:
        """Add to the group a state that :meth:`takes` allows. It replaces the task's earlier state, unless that must last.

        A child process stores its task's result at once if it is large or alone, and otherwise hands it over.
        """
        self._take(write)
        if self.child and write.state == states.SUCCESS:
            if self.alone or write.bytes > CARRIED:
                with suppress(Exception):  # if it cannot be stored, it is handed over
                    self.flush()
        elif self._bytes >= BYTES:
            self.try_flush()

    def store(self, write: Write) -> None:
        """Store a state at once, with those before it. If that fails it raises, and all of them wait to be stored."""
        self._take(write)
        self.flush()

    def _take(self, write: Write) -> None:
        if not write.task_id or type(write.task_id) is not str:  # it would keep the whole group from being stored, for good
            raise TypeError(f"a result needs the id of its task, not {write.task_id!r}")
        with self._lock:
            earlier = self._writes.get(write.task_id)
            if earlier and earlier.state in write.lasting:
                return
            self._writes[write.task_id] = write
            self._bytes += write.bytes
            self._begin()

    def hand_over(self, task_id: str) -> Write | None:
        """The result of the child's task, for the parent to store; None if it is stored."""
        with self._flushing, self._lock:  # another thread may be storing it
            write = self._writes.get(task_id)
            if write is None or write.state != states.SUCCESS:
                return None
            self._passed_on[task_id] = self._writes.pop(task_id)
            if len(self._passed_on) > PASSED_ON:
                del self._passed_on[next(iter(self._passed_on))]
            if not self._writes:
                self._bytes, self._since = 0, None
        return write

    def end(self) -> None:
        """Store what is left of the child's task, which has ended, before the parent is notified."""
        self.task_id, self.ending = None, False
        self.try_flush()

    def before_read(self, task_ids: Iterable[str]) -> None:
        """Store the results of these tasks, which this process is about to read."""
        if self._passed_on:
            for write in [self._passed_on.pop(one) for one in task_ids if one in self._passed_on]:
                self._take(write)
        self.try_flush()

    def before_raw_read(self) -> None:
        """Store all results: this process is about to use the server's client itself."""
        # The garbage collector may do so, within _take.
        if not self._lock.locked():
            self.try_flush()

    @property
    def done(self) -> int:
        """How many tasks have ended and wait for their group. They no longer occupy a slot of the worker."""
        return 0 if self._unavailable else len(self._acks)

    @property
    def lone(self) -> bool:
        """Whether the task that is about to begin is the worker's only one."""
        return self._busy() <= 1

    def ack(self, send: Callable[[], None]) -> None:
        """Have `send` called after all results that were added before are stored."""
        now = time.monotonic()
        with self._lock:
            if not self._acks:
                self._ended = now
            self._acks.append(send)
            full = len(self._acks) >= COUNT or (now - self._ended >= AGE and not self._lazy)
            self._begin()
        if not full and self._grouping:
            if threading.get_ident() == self._loop:  # the pool runs its tasks in the loop, which ticks soon
                self._in_loop = True
                return
            if self._busy():
                self._more()
                return
        self.try_flush()

    def tick(self) -> None:
        """Write the group if it need not wait. Called when the worker's loop is about to wait."""
        self._loop = threading.get_ident()
        if self._in_loop and not (self._lazy and self._may_wait()):
            self._in_loop = False
            self.try_flush()

    def _may_wait(self) -> bool:
        """Whether more tasks are running than have ended, so that the group can wait for them."""
        since = self._since  # once: another thread may write the group meanwhile
        young = since is not None and time.monotonic() - since < SECONDS
        return young and len(self._acks) < min(COUNT, self._busy())

    def defer(self, send: Callable[[], None]) -> bool:
        """Have `send` called after the group's last acknowledgement. Returns False if this thread sends no group now."""
        defers = self._sending and self._flusher == threading.get_ident()
        if defers:
            self._after.add(send)
        return defers

    @unbroken
    def flush(self) -> None:
        """Store the group, then send its acknowledgements. If it cannot be stored it raises, and both wait."""
        me = threading.get_ident()
        if self._flusher == me or (self._since is None and self._flusher is None):
            return
        with self._flushing:
            self._flusher = me
            try:
                self._flush()
            finally:
                self._flusher = None

    def try_flush(self) -> None:
        """Write the group. If the results server is unavailable, the group waits, and tasks continue."""
        if not self._unavailable:
            self._try()

    def _try(self) -> None:
        try:
            self.flush()
        except Exception as error:
            if not self._unavailable:
                logger.error("Results cannot be stored; their tasks stay unacknowledged until they are stored: %r", error)
            self._unavailable = True

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
        if self._unavailable:
            self._unavailable = False
            logger.warning("Results are stored again")
        self._send(acks)

    def _send(self, acks: list[Callable[[], None]]) -> None:
        self._sending = True
        try:
            if self.announce:
                self.announce(acks)
            _call_all(acks)
        finally:
            self._sending = False
            after, self._after = self._after, set()
            _call_all(after)

    def _watch(self) -> None:
        """Write old groups, in a thread of its own: every other thread may be busy with a long task."""
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
            elif self._unavailable:
                time.sleep(RETRY_PAUSE)
                self._try()
            elif (left := since + SECONDS - time.monotonic()) > 0:
                time.sleep(left)
            else:
                idle = 0
                self._try()


def _call_all(sends: Iterable[Callable[[], None]]) -> None:
    """Call all of them, whatever one raises, because each is another task's. Logs an Exception; raises others at the end."""
    interrupted: list[Callable[[], None]] = []
    raised: BaseException | None = None
    for send in sends:
        try:
            send()
        except Exception:  # the connection is lost, and the broker delivers the message again
            logger.exception("A message could not be acknowledged")
        except BaseException as error:  # such as the time limit of the task that runs in this greenlet
            interrupted.append(send)
            raised = error
    for send in interrupted:  # a second call has no effect if the message was acknowledged
        with suppress(BaseException):
            send()
    if raised:
        raise raised


#: The group of this process.
commit = Commit()
