"""Which queues are paused, on Redis: a set of their names."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

from redis import Redis

from celery_kit.base.messages import PAUSED

if TYPE_CHECKING:
    from redis import ConnectionPool
    from upstream.kombu_redis import Channel
    from upstream.redis import Client

    from celery_kit.base.types import Connection

#: The key of the set, after the app's key prefix.
KEY = f"_{PAUSED}"


class RedisPauses:
    """See Pauses."""

    def fits(self, queue: str) -> bool:
        """Whether a queue can have this name."""
        return bool(queue)

    def put(self, connection: Connection, queue: str, paused: bool) -> None:
        """Add a queue to the set, or remove it. Raises redis-py's errors."""
        client, prefix = _place(connection)
        client.execute_command("SADD" if paused else "SREM", f"{prefix}{KEY}", queue)

    def paused(self, connection: Connection, queues: Collection[str]) -> set[str]:
        """Those of the queues that are paused. Raises redis-py's errors."""
        client, prefix = _place(connection)
        return names(client, prefix) & {*queues}


def names(client: Client, prefix: str) -> set[str]:
    """The paused queues. `prefix`: the app's key prefix. Raises redis-py's errors."""
    return {one.decode() if isinstance(one, bytes) else str(one) for one in client.smembers(f"{prefix}{KEY}")}


def _place(connection: Connection) -> tuple[Client, str]:
    channel: Channel = connection.default_channel
    # Not the channel's client, which adds the key prefix for some commands only.
    client = cast("Client", Redis(connection_pool=cast("ConnectionPool", channel.client.connection_pool)))
    return client, channel.global_keyprefix
