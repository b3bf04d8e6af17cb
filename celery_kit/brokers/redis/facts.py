"""What Redis, as the broker, says: how much waits in which list, how much workers hold, how old the next message is.

A queue is a list for each step of priority; the next message is at its right end. What workers hold is one hash for all queues.
Source: kombu/transport/redis.py, Channel._size, QoS.append, Channel._queue_bind.
"""

import json
import time
from collections import Counter
from typing import Any

from redis import Redis

from celery_kit.base.correlation import SENT
from celery_kit.base.facts import Queue, Server, known_queues
from celery_kit.brokers.contract import Environ

#: How many held messages are looked at for their queues; beyond it only their number is told.
MOST = 5_000

#: The oldest release that the kit is for: that of its client, redis-py 8. Valkey says of itself which of Redis' it is like.
OLDEST = 7

#: The share of its memory at which a server counts as full.
FULL = 0.9


def facts(app: Any, connection: Any, _: Environ) -> Server:
    """Ask the server behind `connection`. Raises the connection's errors where it does not answer."""
    channel = connection.default_channel
    # The channel's own connections. Its client puts the prefix before the keys of some commands only.
    client: Any = Redis(connection_pool=channel.client.connection_pool)
    steps, prefix = channel.priority_steps, channel.global_keyprefix
    info = client.info()
    keys = client.scan_iter(match=f"{prefix}_kombu.binding.*", count=1_000)
    bound = [member for key in keys for member in client.smembers(key)]
    names = known_queues(app, (_text(member).split(channel.sep)[-1] for member in bound))
    pipe = client.pipeline(transaction=False)
    for name in names:
        for step in steps:
            pipe.llen(prefix + channel._q_for_pri(name, step)).lindex(prefix + channel._q_for_pri(name, step), -1)
    unacked = prefix + channel.unacked_key
    answers = pipe.hlen(unacked).execute()
    held, number = _held(client, unacked, answers[-1]), 2 * len(steps)
    queues = []
    for position, name in enumerate(names):
        mine = answers[position * number : (position + 1) * number]
        ages = [age for age in map(_age, mine[1::2]) if age is not None]
        queues.append(Queue(name, sum(mine[0::2]), held[name] if held is not None else None, None, max(ages, default=None)))
    notes = [f"{answers[-1]} messages are held by workers"] if held is None else []
    return Server(*product_of(info), queues, info["used_memory"], notes=notes, faults=faults(info, "broker"))


def product_of(info: dict[str, Any]) -> tuple[str, str]:
    """Its name and version, from INFO."""
    valkey = info.get("valkey_version")
    return ("Valkey", str(valkey)) if valkey else ("Redis", str(info["redis_version"]))


def faults(info: dict[str, Any], role: str) -> list[tuple[str, str]]:
    """What INFO tells that loses tasks or results, and what mends it."""
    found = []
    if int(str(info["redis_version"]).partition(".")[0]) < OLDEST:
        found.append((f"the {role} is {' '.join(product_of(info))}, too old for its client", f"Redis {OLDEST} or later"))
    if (policy := info.get("maxmemory_policy")) != "noeviction":
        found.append((f"the {role} throws keys away when its memory is full ({policy})", "set maxmemory-policy noeviction"))
    if role == "broker" and not info.get("aof_enabled"):
        found.append(("the broker writes no append-only file: a restart loses tasks", "set appendonly yes"))
    if (most := info.get("maxmemory")) and info["used_memory"] > FULL * most:
        found.append((f"the {role} uses {info['used_memory'] / 1e6:.0f} MB of its {most / 1e6:.0f} MB", "raise maxmemory"))
    return found


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _held(client: Any, key: str, number: int) -> Counter[str] | None:
    """By queue, how many messages workers hold; None where they are too many to look at."""
    if number > MOST:
        return None
    return Counter(json.loads(value)[2] for value in client.hvals(key))


def _age(message: bytes | None) -> float | None:
    if not message:
        return None
    sent = json.loads(message).get("headers", {}).get(SENT)
    return max(0.0, time.time() - sent) if sent else None
