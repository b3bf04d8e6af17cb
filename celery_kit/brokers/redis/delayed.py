"""Tasks with a countdown or an ETA wait on the server: whole messages, in one sorted set, by the time when they are due.

Celery sends such a task to its queue at once, and a worker holds it until its ETA: longer than the visibility timeout, and it
runs twice (celery #5935). Here a producer adds its message to the set (`delay.lua`), if a worker has left its sign that it
fetches from this server; otherwise it does as Celery. Each fetch first moves what is due to its list, whatever queue that is of
(`move.lua`), by the server's clock. A worker that gets a message before its time, because its sender knows nothing of this,
moves it to the set as well.

A member of the set is the name of a list, a newline, and the message as that list will hold it. Its score is the ETA, in
milliseconds since 1970. The ETA of a countdown is by the clock of its sender, as Celery computes it.
"""

from __future__ import annotations

import logging
import math
from datetime import datetime
from functools import cache
from time import time
from typing import TYPE_CHECKING

from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from celery_kit.base.lua import script

if TYPE_CHECKING:
    from upstream.kombu_redis import Channel
    from upstream.redis import Client

    from celery_kit.base.types import Headers
    from celery_kit.brokers.redis.fixes import Batch

log = logging.getLogger(__name__)

#: The keys of the set, and of the sign that a worker moves what is due.
DELAYED, MOVERS = KEYS = ("_celery-kit.delayed", "_celery-kit.delayed.movers")
#: Seconds that the sign lasts, and after which a worker renews it.
SIGN, RENEW = 60, 20
#: Seconds before its ETA from which a worker keeps a message that it has received.
NEAR = 1.0
#: Seconds after which a message that is due is overdue: a worker moves what is due every 2 s, however busy it is.
OVERDUE = 30

DELAY, MOVE = script(__name__, "delay"), script(__name__, "move")


def due(message: Headers) -> int | None:
    """When a message's task is due, in milliseconds since 1970; None without an ETA that has a time zone."""
    headers = message.get("headers")
    eta = headers.get("eta") if isinstance(headers, dict) else None
    if not isinstance(eta, str):
        return None
    try:
        at = datetime.fromisoformat(eta)
        return math.ceil(at.timestamp() * 1_000) if at.tzinfo else None
    except (ValueError, OverflowError):  # the worker that receives it reports this
        return None


def put(channel: Channel, queue: str, message: Headers, batch: Batch | None) -> bool:
    """Publish a message that is to wait. Returns whether it is published. Raises redis-py's errors. `batch`: add to it."""
    at = due(message)
    if at is None or at <= time() * 1_000 or "\n" in queue or queue in (getattr(channel, "_expires", None) or ()):
        return False
    command = (DELAY, 3, *_keys(channel, queue, message), str(at), dumps(message))
    if batch is not None:
        batch.add("eval", *command)
        return True
    try:
        with channel.conn_or_acquire() as client:
            if client.eval(*command) == 0:
                _say("no worker has moved those that are due in the last minute")
    except ResponseError as error:
        _say(f"the server refuses the script: {error}")
        return False
    return True


def park(channel: Channel, queue: str, message: Headers, raw: bytes) -> bool:
    """Have a message wait that was fetched from `queue` before its time. Returns False if its time has come.

    Raises the connection's errors. Then it is still unacknowledged.
    """
    at = due(message)
    if at is None or at <= (time() + NEAR) * 1_000 or "\n" in queue:
        return False
    prefix, tag = channel.global_keyprefix, message["properties"]["delivery_tag"]
    unacked = (f"{prefix}{channel.unacked_key}", f"{prefix}{channel.unacked_index_key}")
    try:
        with channel.conn_or_acquire() as client:
            return bool(client.eval(DELAY, 5, *_keys(channel, queue, message), *unacked, str(at), raw, tag))
    except ResponseError:  # such as a full memory
        return False


def waiting(client: Client, prefix: str) -> tuple[int, float, bool]:
    """How many messages wait, in how many seconds the first one is due, and whether a worker moves those that are due."""
    key, pipe = prefix + DELAYED, client.pipeline(transaction=False)
    count, first, now, moved = pipe.zcard(key).zrange(key, 0, 0, withscores=True).time().exists(prefix + MOVERS).execute()
    return count, first[0][1] / 1_000 - now[0] - now[1] / 1e6 if first else 0.0, bool(moved)


def _keys(channel: Channel, queue: str, message: Headers) -> tuple[str, str, str]:
    """The set, the sign, and the list that a message is for."""
    priority = channel._get_message_priority(message, reverse=False)
    prefix = channel.global_keyprefix
    return prefix + DELAYED, prefix + MOVERS, prefix + channel._q_for_pri(queue, priority)


@cache
def _say(why: str) -> None:
    """Log a reason once."""
    log.warning("tasks with a countdown or an ETA are sent to their queues at once, as Celery does: %s", why)
