"""Faults of eventlet: its resolver and its timers."""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop
from importlib import import_module
from typing import Any

RESOLVER, HUB = "eventlet.support.greendns", "eventlet.hubs.hub"
#: Has eventlet do without its resolver, if it says yes when the sockets are imported.
SWITCH = "EVENTLET_NO_GREENDNS"


def eventlet_dns() -> None:
    """Have eventlet's resolver, where a process has it, ask the name server each time, as the C library does.

    It keeps an answer for its time to live, which is ten minutes in a Docker network. A container that starts again may have
    another address, and its old one may be another container's by then.
    """
    greendns: Any = sys.modules.get(RESOLVER)
    if greendns is None or greendns.ResolverProxy.clear.__module__ == __name__:
        return
    clear = greendns.ResolverProxy.clear

    def and_keep_nothing(self: Any) -> None:
        clear(self)
        self._resolver.cache = None

    greendns.ResolverProxy.clear = and_keep_nothing


def eventlet_import() -> None:
    """Have the resolver imported with the first name that is looked up. Call it before anything of eventlet's is imported.

    It comes with the sockets: 60 modules and 0.1 s of a start, also where every server is given by its address.
    """
    if os.environ.get(SWITCH):
        return  # the user has chosen
    os.environ[SWITCH] = "yes"
    try:
        green: Any = import_module("eventlet.green.socket")
    finally:
        del os.environ[SWITCH]
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "getnameinfo"):
        setattr(green, name, _later(name))
    green.getaddrinfo = _addresses_at_once(socket.getaddrinfo, green.getaddrinfo)


def _later(name: str) -> Callable[..., Any]:
    def look_up(*args: Any, **options: Any) -> Any:
        if RESOLVER not in sys.modules:
            import_module(RESOLVER)
            eventlet_dns()
        return getattr(sys.modules[RESOLVER], name)(*args, **options)

    return look_up


def _addresses_at_once(plain: Callable[..., Any], look_up: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        with suppress(socket.gaierror):  # it is a name
            return plain(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        return look_up(host, port, family, type, proto, flags)

    return getaddrinfo


def eventlet_timers() -> None:
    """Have eventlet's loop, where a process has it, remove cancelled timers before it sleeps.

    Each wait for a socket has a timer for its timeout. eventlet keeps a cancelled one until it is due, or until they are more
    than a thousand, and sleeps no longer than until the first of them: after a burst of 500 tasks an idle worker wakes 500
    times.
    """
    if hub := sys.modules.get(HUB):
        base: Any = hub.BaseHub
        base.sleep_until = sleep_until


def sleep_until(hub: Any) -> float | None:
    """Return when the hub's first timer is due that is not cancelled; None where there is none."""
    timers = hub.timers
    while timers and timers[0][1].called:
        heappop(timers)
        hub.timers_canceled -= 1
    return timers[0][0] if timers else None
