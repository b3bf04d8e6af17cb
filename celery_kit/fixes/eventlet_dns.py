"""A worker on eventlet cannot find its broker again where that comes back at another address; and it starts late.

eventlet 0.41.3 brings a resolver of its own, which keeps an answer for as long as its time to live: ten minutes in a Docker
network. A container that starts again may have another address, and its old one may be another's by then.
Source: eventlet/support/greendns.py, ResolverProxy.clear. Closed by keeping no answers, as the C library does.

And the resolver is imported with the sockets, 60 modules and 0.1 s of a start, also where every server is given by its address.
Source: eventlet/green/socket.py. Closed by importing it for the first name that is looked up.
Both can go when tests/unit/fixes/test_eventlet_dns.py passes without it.
"""

import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any

MODULE = "eventlet.support.greendns"
#: Has eventlet do without its resolver, if it says yes when the sockets are imported.
SWITCH = "EVENTLET_NO_GREENDNS"


def connect() -> None:
    """Have a process whose resolver is eventlet's ask each time."""
    greendns: Any = sys.modules.get(MODULE)
    if greendns is None or greendns.ResolverProxy.clear.__module__ == __name__:
        return
    clear = greendns.ResolverProxy.clear

    def and_keep_nothing(self: Any) -> None:
        clear(self)
        self._resolver.cache = None

    greendns.ResolverProxy.clear = and_keep_nothing


def defer() -> None:
    """Have the resolver come with the first name. To be called before anything of eventlet's is imported."""
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
        if MODULE not in sys.modules:
            import_module(MODULE)
            connect()
        return getattr(sys.modules[MODULE], name)(*args, **options)

    return look_up


def _addresses_at_once(plain: Callable[..., Any], look_up: Callable[..., Any]) -> Callable[..., Any]:
    def getaddrinfo(host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0) -> Any:
        with suppress(socket.gaierror):  # it is a name
            return plain(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
        return look_up(host, port, family, type, proto, flags)

    return getaddrinfo
