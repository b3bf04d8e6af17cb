"""An exception in another thread, after a time: what green libraries call Timeout, for pools whose tasks run in threads.

In the main thread a signal's handler raises it, at once and out of calls that wait. In any other CPython raises it at the
thread's next step of Python code: a call that waits - for a lock, a server, time.sleep() - is not cut short. dramatiq's time
limits do the same.
Sources: https://docs.python.org/3/c-api/threads.html, PyThreadState_SetAsyncExc; dramatiq/threading.py, raise_thread_exception.
"""

import ctypes
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic, sleep
from types import CodeType, FrameType, TracebackType
from typing import Any, TypeVar

#: Seconds between two looks at who is late, while there are tasks.
EVERY = 0.1
#: Neither Celery nor the kit uses it for anything else. None on Windows: there the main thread is as any other.
SIGNAL: Any = getattr(signal, "SIGVTALRM", None)
#: A function of such a name takes, or gives back, what its caller holds. An exception in the midst of it would leave that
#: taken for good: a log handler's lock, before Python 3.13, and then every thread of the process stands still. An exception
#: that is due waits for the next look. Source: https://github.com/python/cpython/issues/106238.
HANDS_OVER = ("acquire", "__enter__", "release", "__exit__")
#: Functions that are worked off to their end, whatever they call: what they do is for other tasks than the one that is late.
UNBROKEN: set[CodeType] = set()


Function = TypeVar("Function", bound=Callable[..., Any])


def unbroken(function: Function) -> Function:
    """A function in whose midst no exception is raised: one that is due waits for its end."""
    UNBROKEN.add(function.__code__)
    return function


class Interrupt:
    """A context in which `exception` is raised after `seconds`, once. `pending`: it was not.

    `due` may be set to an earlier time of the monotonic clock, by any thread; 0: as soon as may be.
    """

    def __init__(self, seconds: float, exception: BaseException) -> None:
        self.exception = exception
        self.thread = threading.get_ident()
        self.due = monotonic() + seconds
        self.pending = True

    def __enter__(self) -> "Interrupt":
        watch.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not watch.remove(self):
            watch.forget(self)


class Watch:
    """A thread that looks for those that are late. Whoever takes one out of `running` alone deals with it."""

    def __init__(self) -> None:
        self.running: dict[Interrupt, None] = {}
        self.main = threading.main_thread().ident if SIGNAL else None
        self._some = threading.Event()
        self._striking = threading.Lock()
        self._struck: deque[Interrupt] = deque()
        self._thread: threading.Thread | None = None
        self._handles = False

    def add(self, one: Interrupt) -> None:
        if one.thread == self.main and not self._handles:  # the first ones may have been other threads'
            signal.signal(SIGNAL, self._handle)
            self._handles = True
        if not self._thread:
            self._begin()
        self.running[one] = None
        if not self._some.is_set():
            self._some.set()

    def _begin(self) -> None:
        with self._striking:
            if not self._thread:
                self._thread = threading.Thread(target=self._work, name="time-limits", daemon=True)
                self._thread.start()

    def remove(self, one: Interrupt) -> bool:
        """False where its exception was raised, or is about to be."""
        return self.running.pop(one, one) is None

    def forget(self, one: Interrupt) -> None:
        """What was raised too late to be seen is not to be seen by whatever the thread does next."""
        with self._striking:
            if one.thread == self.main:
                if one in self._struck:
                    self._struck.remove(one)
            else:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(one.thread), None)

    def _work(self) -> None:
        while True:
            self._some.wait()
            sleep(EVERY)
            now = monotonic()
            for one in list(self.running):
                if one.due <= now:
                    self._strike(one)
            if not self.running:
                self._some.clear()
                if self.running:
                    self._some.set()

    def _strike(self, one: Interrupt) -> None:
        with self._striking:
            if _must_wait(one.thread) or not self.remove(one):
                return  # at the next look, or never
            one.pending = False
            if one.thread == self.main:
                self._struck.append(one)
                signal.pthread_kill(one.thread, SIGNAL)
            else:
                kind: Any = type(one.exception)  # CPython takes a class, and makes the exception itself
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(one.thread), ctypes.py_object(kind))

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self._struck:
            raise self._struck.popleft().exception


def _must_wait(thread: int) -> bool:
    """Where a thread is seen, there the exception reaches it: this one holds the interpreter's lock until it is set."""
    frame = sys._current_frames().get(thread)
    if frame is not None and frame.f_code.co_name in HANDS_OVER:
        return True
    while frame is not None and frame.f_code not in UNBROKEN:
        frame = frame.f_back
    return frame is not None


watch = Watch()
