"""Forked children (gunicorn's `--preload`, multiprocessing, os.fork()) must not use their parent's connections.

A child that is forked after its parent has sent a task or waited for a result shares the parent's sockets. What both write to a
socket gets mixed, and either may read the server's answer. Celery 5.7.0 and kombu 5.7.0 handle only billiard's processes, those
of prefork's workers. There they close the parent's own AMQP connection at the broker, and the results client of Redis is not
handled at all. Source: kombu/utils/compat.py, register_after_fork; kombu/connection.py, collect; celery/backends/redis.py,
ResultConsumer.on_after_fork, which nobody calls.

Here the child drops them all before fork returns: it closes its end of each socket without a word to the server; producers,
results, control commands and the spool start again. The child takes no lock, because the thread that held it may not exist in
the child, and it replaces locks that are held often: kombu's cached_property takes its lock for each read too. Can go when
tests/compat/test_forks.py passes for plain Celery.
"""

import importlib
import os
import sys
import threading
from contextlib import suppress
from functools import cached_property
from weakref import WeakSet

from celery import Celery
from celery.utils.dispatch import Signal
from kombu import pools

from celery_kit import brokers, results
from celery_kit.base.types import ResultBackend

_apps: "WeakSet[Celery]" = WeakSet()
_backends: "WeakSet[ResultBackend]" = WeakSet()
#: The number of this process's threads when it forked last.
_threads = 1


def connect(app: Celery) -> None:
    """Have every child of this process drop the connections of `app`."""
    if not _apps and hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_count, after_in_child=_close_inherited)
    _apps.add(app)


def watch(backend: ResultBackend) -> None:
    """The same for a result backend of such an app. A thread may have a backend of its own."""
    _backends.add(backend)


def _count() -> None:
    global _threads
    _threads = threading.active_count()


def _close_inherited() -> None:
    if _threads > 1:
        _renew_locks()
    for app in list(_apps):
        _drop_producers(app)
        vars(app)["_local"] = threading.local()  # the queue for replies, and the backend of a thread that has its own
        vars(app).pop("oid", None)
        if spooled := vars(app).pop("spooled", None):
            spooled.spool.close_inherited()
        if control := vars(app).get("control"):
            with suppress(AttributeError):  # no command has been sent
                control._after_fork()
    for backend in list(_backends):
        if hasattr(backend._cache, "mutex"):
            backend._cache.mutex = threading.RLock()
        if (row := results.room(backend.url)) and row.close_inherited:
            row.close_inherited(backend)


def _renew_locks() -> None:
    # The locks of modules that are being imported, because kombu tries to import librabbitmq for each new connection.
    vars(vars(importlib)["_bootstrap"]).get("_module_locks", {}).clear()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] not in ("celery", "kombu", "celery_kit"):
            continue
        for one in list(vars(module).values()):
            if isinstance(one, Signal):
                one.lock = threading.Lock()  # type: ignore[attr-defined]  # unknown to celery-types
            elif isinstance(one, type) and one.__module__ == name:
                for attribute in vars(one).values():
                    if isinstance(attribute, cached_property) and hasattr(attribute, "lock"):
                        attribute.lock = threading.RLock()


def _drop_producers(app: Celery) -> None:
    amqp = vars(app).get("amqp")
    of_producers = amqp._producer_pool.connections if amqp and amqp._producer_pool else None
    for pool in filter(None, (vars(app).get("_pool"), of_producers)):
        for connection in (*pool._resource.queue, *pool._dirty):
            brokers.close_inherited(connection)
        for key in [key for key, one in pools.connections.items() if one is pool]:
            pools.connections.pop(key)
    vars(app)["_pool"] = None
    if amqp:
        amqp._producer_pool = None
