"""Failed tasks on Redis: a hash by task id, and its index by time. Sends back dead letters of all kinds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError

from celery_kit.base.lua import script
from celery_kit.base.messages import FAILED
from celery_kit.brokers.contract import DeadLetter

if TYPE_CHECKING:
    from celery import Celery
    from redis import ConnectionPool
    from upstream.kombu_redis import Channel
    from upstream.kombu_virtual import Message
    from upstream.redis import Client

    from celery_kit.base.types import Message as AnyMessage

INDEX = f"{FAILED}.index"
PUT, SEND_BACK = script(__name__, "failed"), script(__name__, "send_back")


def client_of(channel: Channel) -> Client:
    """A client on the channel's own connections that adds no prefix to keys: kombu's does so for some commands only."""
    return cast("Client", Redis(connection_pool=cast("ConnectionPool", channel.client.connection_pool)))


def record_of(item: bytes, letter: DeadLetter) -> str:
    """What the hashes of dead letters hold: a letter, and the item that its queue held."""
    return json.dumps({"letter": asdict(letter), "item": item.decode("utf-8", "surrogateescape")})


class RedisFailedTasks:
    """See FailedTasks."""

    def __init__(self, app: Celery, channel: Channel) -> None:
        self._client = client_of(channel)
        self._keys = [f"{channel.global_keyprefix}{key}" for key in (FAILED, INDEX)]
        self._bounds = int(app.conf.failed_most), int(app.conf.failed_expires)

    def put(self, several: Sequence[tuple[AnyMessage, DeadLetter]]) -> None:
        """Store messages by one script. Raises redis-py's errors, and OperationalError of a full or read-only server."""
        pairs: list[str] = []
        for message, letter in several:
            pairs += letter.id, record_of(dumps(cast("Message", message)._raw).encode(), letter)
        try:
            self._client.eval(PUT, 2, *self._keys, *self._bounds, *pairs)
        except (OutOfMemoryError, ReadOnlyError) as error:
            raise OperationalError(str(error)) from error

    def close(self) -> None:
        """Nothing to close: the connections belong to the channel."""
