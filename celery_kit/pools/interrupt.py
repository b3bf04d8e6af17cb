"""Raise an exception in another thread after a time: what green libraries call Timeout, for pools whose tasks run in threads.

In the main thread a signal's handler raises it, at once and also out of blocking calls. In any other thread CPython raises it
at the thread's next step of Python code, so that a blocking call (for a lock, a server, time.sleep()) is not interrupted.
dramatiq's time limits do the same.
Sources: https://docs.python.org/3/c-api/threads.html, PyThreadState_SetAsyncExc; dramatiq/threading.py, raise_thread_exception.
"""

import ctypes
import signal
import sys
import threading
from collections import deque
from time import monotonic, sleep
from types import CodeType, FrameType, TracebackType
from typing import TypeVar

from celery_kit.base.types import Callback

#: Seconds between two checks for tasks that are late, while there are tasks.
EVERY = 0.1
#: Neither Celery nor the kit uses it for anything else. 0 on Windows, where the main thread is treated as any other.
SIGNAL: int = getattr(signal, "SIGVTALRM", 0)
#: Functions of these names acquire or release a lock for their caller. An exception within one would leave the lock held for
#: good, and block every thread that needs it: before Python 3.13, a log handler's. An exception that is due waits for the next
#: check. Source: https://github.com/python/cpython/issues/106238.
HANDS_OVER = ("acquire", "__enter__", "release", "__exit__")
#: Functions that are never interrupted, nor is what they call: they work for other tasks than the one that is late.
UNBROKEN: set[CodeType] = set()


Function = TypeVar("Function", bound=Callback)


def unbroken(function: Function) -> Function:
    """Decorate a Python function so that no exception is raised within it. One that is due waits for its end."""
    UNBROKEN.add(function.__code__)
    return function


class Interrupt:
    """A context in which `exception` is raised once, after `seconds`. `pending` is True until then.

    Any thread may set `due` to an earlier time of the monotonic clock; 0 means as soon as possible.
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
    """A thread that raises the exceptions that are due. Whoever removes an interrupt from `running` owns it from then on."""

    def __init__(self) -> None:
        self.running: dict[Interrupt, None] = {}
        self.main = threading.main_thread().ident if SIGNAL else None
        self._some = threading.Event()
        self._striking = threading.Lock()
        self._struck: deque[Interrupt] = deque()
        self._thread: threading.Thread | None = None
        self._handles = False

    def add(self, one: Interrupt) -> None:
        """Raise the exception of `one` when it is due. Called in its own thread."""
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
        """Take `one` out. Returns False if its exception was raised, or is about to be."""
        return self.running.pop(one, one) is None

    def forget(self, one: Interrupt) -> None:
        """Clear an exception that came too late, so that it does not reach whatever the thread does next."""
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
                return  # retried at the next check, or over
            one.pending = False
            if one.thread == self.main:
                self._struck.append(one)
                signal.pthread_kill(one.thread, SIGNAL)
            else:
                kind = ctypes.py_object(type(one.exception))  # CPython takes a class, and makes the exception itself
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(one.thread), kind)

    def _handle(self, _: int, __: FrameType | None) -> None:
        if self._struck:
            raise self._struck.popleft().exception


def _must_wait(thread: int) -> bool:
    """Whether the thread is in a function that must not be interrupted. This thread holds the GIL, so it cannot move on."""
    frame = sys._current_frames().get(thread)
    if frame is not None and frame.f_code.co_name in HANDS_OVER:
        return True
    while frame is not None and frame.f_code not in UNBROKEN:
        frame = frame.f_back
    return frame is not None


watch = Watch()
