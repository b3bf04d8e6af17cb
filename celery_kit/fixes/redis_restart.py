"""A restart of a Redis broker ends the worker, where it holds an unacknowledged message: running, or waiting for its ETA.

Celery 5.7.0 closes the lost connection at once, and when the task is over kombu 5.7.0 acknowledges its message on a new one,
whose address it looks up in the one that is gone: `AttributeError: 'NoneType' object has no attribute 'hostname'`, exit code 1.
Source: celery/worker/consumer/consumer.py, on_connection_error_after_connected; kombu/transport/redis.py, _connparams.

Closed by remembering the address. Can go when tests/engine/test_redis_restart.py passes without it.
"""

from typing import Any


class RememberAddress:
    """For a channel of kombu's Redis transport, before its class."""

    _known: dict[bool, dict[str, Any]]

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        known = self.__dict__.setdefault("_known", {})
        transport: Any = getattr(self, "connection", None)
        if getattr(transport, "client", None) is not None:
            known[asynchronous] = super()._connparams(asynchronous)  # type: ignore[misc]
        return dict(known.get(asynchronous) or known[not asynchronous])
