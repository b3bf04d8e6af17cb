"""The handler of a worker's log on stderr. It writes many lines at once: one write a line costs as much as a quick task.

A line that follows another within SECONDS waits in a buffer, for SECONDS at most or until there are LINES. An ERROR is written
at once, with all lines before it. The thread that writes what has waited is one of the system, on the green pools too. So a
process that is killed loses the lines of its last SECONDS, unless a call of C code held the GIL, which stops that thread.

Lines stay whole and in their order. Where processes share a pipe - a prefork worker and its children - one write is at most
PIPE bytes, which the system puts into a pipe in one piece. A forked child begins with an empty buffer. Its lines, an ERROR too,
wait for the lines that its parent had logged before them, such as that of the task's arrival. Both are written twice as often,
so that no line waits longer than SECONDS.
"""

import logging
import mmap
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TextIO
from weakref import WeakKeyDictionary

from celery_kit.base.unpatched import unpatched
from celery_kit.pools.interrupt import unbroken

SECONDS, LINES = 0.05, 128
#: Bytes of one write: to what other processes write to, too (POSIX's PIPE_BUF on Linux), and otherwise.
PIPE, MOST = 4_096, 65_536
#: Seconds until the next try, if a reader of a pipe that does not block is behind.
AGAIN = 0.01
#: Seconds that a child waits for its parent at most. A parent that lives takes so long only on a machine with too much to do.
LATE = 1.0


class Progress:
    """How many lines a process has logged since its first fork, and how many of these it has written: its children see it."""

    def __init__(self) -> None:
        self._numbers = memoryview(mmap.mmap(-1, 16)).cast("Q")

    @property
    def logged(self) -> int:
        return self._numbers[0]

    def log(self) -> None:
        """Count a line."""
        self._numbers[0] += 1  # if two threads do this at once, one of them may not count: its line may come late

    def is_written(self, number: int) -> bool:
        """Whether so many lines are written."""
        return self._numbers[1] >= number

    def write(self, number: int) -> None:
        """Tell that so many lines are written."""
        self._numbers[1] = number


class Writer:
    """Writes lines to a file, by its descriptor, from any thread. `encoding`: the file's."""

    def __init__(self, file: int, encoding: str) -> None:
        self.file, self.encoding = file, encoding
        self.most, self.seconds = MOST, SECONDS
        self.progress: Progress | None = None  # this process', once it has children
        self.parents: Progress | None = None
        self.closed = False
        self._os_write: Callable[[int, bytes], int] = unpatched(os.name).write
        self._sleep: Callable[[float], None] = unpatched("time").sleep
        self._threads = unpatched("_thread")
        self._begin()

    def _begin(self) -> None:
        self._lines: deque[str] = deque()
        self._turn = self._threads.RLock()  # a signal's handler may log in the middle of a write
        self._some = self._threads.allocate_lock()
        self._some.acquire()
        self._due = False  # whether the thread of this object knows of a line
        self._runs = False
        self._last = -SECONDS  # the last write, in seconds of the monotonic clock
        self._after = 0  # the number of the parent's lines that come before this process'

    @unbroken
    def put(self, line: str, at_once: bool = False) -> None:
        """Write a line, which ends with a line feed, now or soon. Raises nothing if the file cannot be written."""
        self._lines.append(line)
        if self.progress:
            self.progress.log()
        if self.parents:
            self._after = self.parents.logged
        now = at_once or len(self._lines) >= LINES or monotonic() - self._last >= self.seconds
        if self.closed or (now and self._is_next()):
            self.write()
        elif not self._due:
            self._wake()

    def _is_next(self) -> bool:
        return not self.parents or self.parents.is_written(self._after)

    def _wake(self) -> None:
        self._due = True
        if not self._runs:
            self._runs = True
            try:
                self._threads.start_new_thread(self._work, ())
            except RuntimeError:  # at the interpreter's end, or there are too many
                self._due = self._runs = False
                self.write()
                return
        with suppress(RuntimeError):  # another thread has woken it
            self._some.release()

    def _work(self) -> None:
        while True:
            self._some.acquire()
            self._sleep(self.seconds)
            self._due = False
            with suppress(Exception):  # later lines need this thread
                latest = monotonic() + LATE
                while not self._is_next() and monotonic() < latest:
                    self._sleep(AGAIN / 2)
                self.write()

    @unbroken
    def write(self) -> None:
        """Write all lines that wait."""
        with self._turn:  # also if no line waits: another thread may be about to write the last ones
            if self._lines:
                self._last = monotonic()
            logged = self.progress.logged if self.progress else 0
            batch: list[bytes] = []
            size = 0
            for _ in range(len(self._lines)):
                try:
                    line = self._lines.popleft().encode(self.encoding, "backslashreplace")
                except IndexError:  # a signal's handler has written the rest
                    break
                if size + len(line) > self.most and batch:
                    self._send(b"".join(batch))
                    batch, size = [], 0
                batch.append(line)
                size += len(line)
            self._send(b"".join(batch))
            if self.progress:
                self.progress.write(logged)

    def _send(self, data: bytes) -> None:
        while data:
            try:
                data = data[self._os_write(self.file, data) :]
            except BlockingIOError:
                self._sleep(AGAIN)
            except OSError:  # a full disk, or a reader that has gone: no task fails for its log
                return


class Handler(logging.StreamHandler[TextIO]):
    """A handler of stderr, like Celery's, that writes through a :class:`Writer`."""

    def __init__(self, stream: TextIO, writer: Writer) -> None:
        super().__init__(stream)
        self.writer, self._own = writer, stream

    def is_direct(self) -> bool:
        """Whether its lines go to another stream by now, without the writer."""
        return self.stream is not self._own

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, now or soon."""
        if self.is_direct():
            super().emit(record)
            return
        try:
            self.writer.put(self.format(record) + self.terminator, record.levelno >= logging.ERROR)
        except RecursionError:
            raise
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        self.writer.write()
        super().flush()

    def close(self) -> None:
        """Write what waits, and every later line at once: the interpreter is about to exit."""
        self.writer.closed = True
        self.flush()
        super().close()


_writers: "WeakKeyDictionary[TextIO, Writer]" = WeakKeyDictionary()


def handler(stream: TextIO) -> logging.Handler:
    """A handler of `stream`: one that writes in batches if the stream has a file."""
    try:
        file = stream.fileno()
        stream.flush()
    except (OSError, ValueError):
        return logging.StreamHandler(stream)
    if stream not in _writers:
        _writers[stream] = Writer(file, stream.encoding or "utf-8")
    return Handler(stream, _writers[stream])


def _forks() -> None:
    for one in list(_writers.values()):
        one.most, one.seconds = PIPE, SECONDS / 2
        if not (one.progress or one.parents):
            one.progress = Progress()


def _forked() -> None:
    for one in list(_writers.values()):
        one.progress, one.parents = None, one.progress or one.parents
        one._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forks, after_in_child=_forked)
