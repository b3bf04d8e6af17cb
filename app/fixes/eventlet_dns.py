"""A worker on eventlet cannot find its broker again where that comes back at another address.

eventlet 0.41.3 brings a resolver of its own, which keeps an answer for as long as its time to live: ten minutes in a Docker
network. A container that starts again may have another address, and its old one may be another's by then.
Source: eventlet/support/greendns.py, ResolverProxy.clear. Closed by keeping no answers, as the C library does.
Can go when tests/unit/test_eventlet_dns.py passes without it.
"""

import sys
from typing import Any


def connect() -> None:
    """Have a process whose sockets are eventlet's ask each time. The module is there by now, or never."""
    greendns: Any = sys.modules.get("eventlet.support.greendns")
    if greendns is None:
        return
    clear = greendns.ResolverProxy.clear

    def and_keep_nothing(self: Any) -> None:
        clear(self)
        self._resolver.cache = None

    greendns.ResolverProxy.clear = and_keep_nothing
