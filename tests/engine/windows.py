"""An interpreter that lacks what Windows lacks: `python -m tests.engine.windows MODULE [ARGUMENTS]` runs a module in it.

The standard library and the other packages are imported first, because they have separate code for Windows. Then the modules
and names that only POSIX has are removed, and the platform's name is changed. It does not simulate how sockets, files and
processes behave on Windows.
"""

import asyncio
import ctypes
import importlib
import multiprocessing
import os
import platform
import runpy
import select
import selectors
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from importlib.abc import MetaPathFinder
from typing import Any

#: Modules that the standard library imports lazily, some by the platform's name.
LIBRARY = (asyncio, ctypes, multiprocessing, sqlite3, ssl, subprocess, tempfile)
MODULES = ("fcntl", "termios", "tty", "pty", "pwd", "grp", "resource", "curses", "readline", "syslog", "crypt", "nis", "spwd")
NAMES: dict[Any, tuple[str, ...]] = {
    os: (
        "fork", "forkpty", "register_at_fork", "getuid", "geteuid", "getgid", "getegid", "getgroups", "setuid", "setgid",
        "setsid", "killpg", "getpgid", "getpgrp", "setpgid", "wait", "wait3", "wait4", "waitid", "WNOHANG", "nice", "uname",
        "statvfs", "sched_getaffinity", "sched_setaffinity", "sched_yield", "mkfifo", "chown", "lchown", "fchown",
        "chroot", "sync", "fdatasync", "sysconf", "openpty", "ttyname", "pipe2", "posix_spawn", "O_NONBLOCK", "O_CLOEXEC",
        "O_DIRECTORY", "O_NOFOLLOW", "O_SYNC", "O_NOCTTY", "writev", "readv", "pread", "pwrite", "sendfile", "confstr",
    ),
    signal: (
        "SIGKILL", "SIGQUIT", "SIGALRM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGPROF", "SIGCHLD", "SIGCLD", "SIGCONT",
        "SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGPIPE", "SIGURG", "SIGWINCH", "SIGIO", "SIGBUS", "SIGSYS", "SIGTRAP",
        "ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF", "setitimer", "getitimer", "alarm", "pause", "pthread_kill",
        "pthread_sigmask", "sigwait", "sigwaitinfo", "sigtimedwait", "sigpending", "siginterrupt",
    ),
    select: ("poll", "epoll", "kqueue", "PIPE_BUF", "EPOLLIN", "POLLIN"),
    time: ("clock_gettime", "clock_settime", "CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "CLOCK_REALTIME", "tzset"),
    socket: ("AF_NETLINK", "SO_REUSEPORT", "MSG_DONTWAIT", "MSG_NOSIGNAL", "CMSG_LEN", "CMSG_SPACE"),
}  # fmt: skip
#: Dependencies of the kit. They are imported before the names are removed.
PACKAGES = (
    "celery.concurrency.prefork",
    "celery.bin.celery",
    "celery.apps.worker",
    "celery.apps.beat",
    "celery.contrib.testing.worker",
    "kombu",
    "redis",
    "amqp",
)


class Absent(MetaPathFinder):
    """Finds none of the modules that Windows does not have."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _hide(module: Any) -> None:
    for name in NAMES[module]:
        vars(module).pop(name, None)


def become_windows() -> None:
    importlib.import_module("billiard.pool")  # would load a library of Windows, by the platform's name
    platform.system = lambda: "Windows"
    vars(selectors)["DefaultSelector"] = selectors.SelectSelector
    _hide(select)
    for package in PACKAGES:
        importlib.import_module(package)
    assert not [name for name in sys.modules if name.partition(".")[0] in ("app", "celery_kit")]
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Absent())
    for module in NAMES:
        _hide(module)
    sys.platform = "win32"


if __name__ == "__main__":
    become_windows()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
