"""A child that is forked after its parent has sent a task or waited for a result shares the parent's sockets: gunicorn's
`--preload`, multiprocessing, os.fork().

What both write to one socket gets mixed, and what the server answers goes to either. Celery 5.7.0 and kombu 5.7.0 know of
billiard's processes alone, which are those of prefork's workers; there they say goodbye to the broker on the parent's own
connection (AMQP); and the client of results in Redis is told of no fork at all. Source: kombu/utils/compat.py,
register_after_fork; kombu/connection.py, collect; celery/backends/redis.py, ResultConsumer.on_after_fork, which nobody calls.

Closed by having a child let go of all of it before fork returns there: its end of each socket is closed without a word to the
server, and producers, results, control commands and the spool begin anew. No lock is taken: a thread that held it is not there.
Those that are held all the time are made anew: kombu's cached_property takes its own to read what it has kept, too. Can go when
tests/compat/test_forks.py passes for plain Celery.
"""

import importlib
import os
import sys
import threading
from contextlib import suppress
from functools import cached_property
from typing import Any
from weakref import WeakSet

from celery.utils.dispatch import Signal
from kombu import pools

from celery_kit import brokers, results

_apps: "WeakSet[Any]" = WeakSet()
_backends: "WeakSet[Any]" = WeakSet()
#: Of this process when it forked last.
_threads = 1


def connect(app: Any) -> None:
    """Have every child of this process let go of what `app` has open."""
    if not _apps and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_count, after_in_child=_let_go)
    _apps.add(app)


def watch(backend: Any) -> None:
    """The same for a result backend of such an app; a thread may have one of its own."""
    _backends.add(backend)


def _count() -> None:
    global _threads
    _threads = threading.active_count()


def _let_go() -> None:
    if _threads > 1:
        _renew_locks()
    for app in list(_apps):
        _let_go_of_producers(app)
        app._local = threading.local()  # the queue that replies come to, and where that is a thread's own the backend
        vars(app).pop("oid", None)
        if spooled := vars(app).pop("spooled", None):
            spooled.spool.let_go()
        if control := vars(app).get("control"):
            with suppress(AttributeError):  # it has used none
                control._after_fork()
    for backend in list(_backends):
        if hasattr(backend._cache, "mutex"):
            backend._cache.mutex = threading.RLock()
        if (room := results.room(backend.url)) and room.let_go:
            room.let_go(backend)


def _renew_locks() -> None:
    # Those of modules that are being imported: kombu looks for librabbitmq with each new connection.
    vars(vars(importlib)["_bootstrap"]).get("_module_locks", {}).clear()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("celery", "kombu", "celery_kit"):
            continue
        for one in list(vars(module).values()):
            if isinstance(one, Signal):
                one.lock = threading.Lock()  # type: ignore[attr-defined]  # unknown to celery-types
            elif isinstance(one, type) and one.__module__ == name:
                for kept in vars(one).values():
                    if isinstance(kept, cached_property) and hasattr(kept, "lock"):
                        kept.lock = threading.RLock()


def _let_go_of_producers(app: Any) -> None:
    amqp = vars(app).get("amqp")
    of_producers = amqp._producer_pool.connections if amqp and amqp._producer_pool else None
    for pool in filter(None, (app._pool, of_producers)):
        for connection in (*pool._resource.queue, *pool._dirty):
            brokers.let_go(connection)
        for key in [key for key, one in pools.connections.items() if one is pool]:
            pools.connections.pop(key)
    app._pool = None
    if amqp:
        amqp._producer_pool = None
