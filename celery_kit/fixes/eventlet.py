"""Faults of eventlet: its resolver and its timers."""

import os
import socket
import sys
from contextlib import suppress
from heapq import heappop
from importlib import import_module
from typing import Protocol

from celery_kit.base.types import Callback

RESOLVER, HUB = "eventlet.support.greendns", "eventlet.hubs.hub"
#: Set to "yes" when the sockets are imported, it makes eventlet do without its resolver.
SWITCH = "EVENTLET_NO_GREENDNS"


def eventlet_dns() -> None:
    """Have eventlet's resolver, if the process has it, ask the name server each time, as the C library does.

    The resolver caches an answer for its time to live, which is ten minutes in a Docker network. A container that starts again
    may have another address by then, and another container its old one.
    """
    greendns = sys.modules.get(RESOLVER)
    if greendns is None or greendns.ResolverProxy.clear.__module__ == __name__:
        return
    clear: Callback = greendns.ResolverProxy.clear

    def clear_without_cache(self: _ResolverProxy) -> None:
        clear(self)
        self._resolver.cache = None

    greendns.ResolverProxy.clear = clear_without_cache


class _Resolver(Protocol):
    cache: object


class _ResolverProxy(Protocol):
    """eventlet.support.greendns.ResolverProxy."""

    _resolver: _Resolver


def eventlet_import() -> None:
    """Have the resolver imported at the first lookup of a name. Call it before anything of eventlet's is imported.

    eventlet imports it with its sockets: 60 modules and 0.1 s of a start, even if every server is given by its address.
    """
    if os.environ.get(SWITCH):
        return  # the user has chosen
    os.environ[SWITCH] = "yes"
    try:
        green = vars(import_module("eventlet.green.socket"))
    finally:
        del os.environ[SWITCH]
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "getnameinfo"):
        green[name] = _later(name)
    green["getaddrinfo"] = _addresses_at_once(socket.getaddrinfo, green["getaddrinfo"])


def _later(name: str) -> Callback:
    def look_up(*args: object, **options: object) -> object:
        if RESOLVER not in sys.modules:
            import_module(RESOLVER)
            eventlet_dns()
        return getattr(sys.modules[RESOLVER], name)(*args, **options)

    return look_up


def _addresses_at_once(plain: Callback, look_up: Callback) -> Callback:
    def getaddrinfo(host: object, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> object:
        with suppress(socket.gaierror):  # the host is a name
            return plain(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        return look_up(host, port, family, type, proto, flags)

    return getaddrinfo


def eventlet_timers() -> None:
    """Have eventlet's loop, if the process has it, remove cancelled timers before it sleeps.

    Each wait for a socket has a timer for its timeout. eventlet keeps a cancelled timer until it is due, or until there are
    more than a thousand, and sleeps only until the first of them. After a burst of 500 tasks, an idle worker wakes 500 times.
    """
    if hub := sys.modules.get(HUB):
        hub.BaseHub.sleep_until = sleep_until


class _Timer(Protocol):
    called: bool


class _Hub(Protocol):
    """eventlet.hubs.hub.BaseHub. `timers`: a heap, by the time when each is due."""

    timers: list[tuple[float, _Timer]]
    timers_canceled: int


def sleep_until(hub: _Hub) -> float | None:
    """Return when the first timer is due that is not cancelled, in seconds of the hub's clock. None if there is none."""
    timers = hub.timers
    while timers and timers[0][1].called:
        heappop(timers)
        hub.timers_canceled -= 1
    return timers[0][0] if timers else None
