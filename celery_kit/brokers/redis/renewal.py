"""The thread that renews a process's leases (leases.py), with connections of its own.

It is a thread of the operating system also where eventlet or gevent replaces threads, so that a busy loop does not stop it.
"""

from __future__ import annotations

import _thread
import atexit
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from upstream.redis import Client, ConnectionPool

    from celery_kit.brokers.redis.leases import Lease

#: Seconds after which it looks again in any case.
LOOK_AGAIN = 5.0


class Lock(Protocol):
    """A lock of the operating system."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...
    def release(self) -> None: ...


_of_process = 0  # the process that has the thread
#: The thread's clients, by their connections.
_clients: dict[ConnectionPool, Client] = {}


def start(leases: Mapping[tuple[str, str], Lease], client: Callable[[ConnectionPool], Client]) -> None:
    """Start the thread, once in a process. A forked child has none, and holds no messages.

    `client(pool)`: makes a client. The thread alone uses the connections of `lease.pool`.
    """
    global _of_process
    if _of_process != os.getpid():
        _of_process = os.getpid()
        new_thread, lock = _originals()
        # A thread in gevent's loop while the interpreter exits would crash the process: from then on, it waits for the lock.
        renewing = lock()
        atexit.register(renewing.acquire, timeout=1.0)
        new_thread(_renew, (leases, client, renewing, lock()))


def _originals() -> tuple[Callable[..., object], Callable[[], Lock]]:
    """Python's functions that start a thread and make a lock, which eventlet and gevent replace."""
    if monkey := sys.modules.get("gevent.monkey"):
        return monkey.get_original("_thread", "start_new_thread"), monkey.get_original("_thread", "allocate_lock")
    if patcher := sys.modules.get("eventlet.patcher"):
        originals = patcher.original("_thread")
        return originals.start_new_thread, originals.allocate_lock
    return _thread.start_new_thread, _thread.allocate_lock


def _renew(
    leases: Mapping[tuple[str, str], Lease], client: Callable[[ConnectionPool], Client], renewing: Lock, never: Lock
) -> None:
    """Renew all leases, for ever. Writes no log: eventlet's and gevent's locks are of one thread."""
    never.acquire()
    while True:
        wait = min((lease.due for lease in list(leases.values())), default=LOOK_AGAIN)
        never.acquire(timeout=min(LOOK_AGAIN, max(0.05, wait)))  # a sleep that is not eventlet's or gevent's
        renewing.acquire()
        for pool in _clients.keys() - {lease.pool for lease in list(leases.values())}:
            _clients.pop(pool).connection_pool.disconnect()
        for lease in list(leases.values()):
            if lease.due <= 0:
                with suppress(Exception):  # tried again in a second; the worker's loop reports what is wrong
                    lease.renew(_clients.setdefault(lease.pool, client(lease.pool)))
        renewing.release()


def close_inherited() -> None:
    """In a forked child: close its copies of the sockets. redis-py sends nothing then."""
    for client in _clients.values():
        client.connection_pool.disconnect()
    _clients.clear()
