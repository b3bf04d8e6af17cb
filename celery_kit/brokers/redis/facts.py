"""Facts about Redis as the broker: messages that wait, messages that workers hold, and the age of the next message.

A queue is one list for each step of priorities, with the next message at its right end. What workers hold is one hash for all
queues.
Source: kombu/transport/redis.py, Channel._size, QoS.append, Channel._queue_bind.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from redis import Redis
from redis.exceptions import ResponseError

from celery_kit.base.correlation import SENT
from celery_kit.base.facts import Held, Queue, Server, known_queues
from celery_kit.brokers.contract import Environ
from celery_kit.brokers.redis import delayed, pauses

if TYPE_CHECKING:
    from celery import Celery
    from redis import ConnectionPool
    from upstream.redis import Client

    from celery_kit.base.types import Connection, Headers
    from celery_kit.brokers.redis.transport import Channel

#: The largest number of unacknowledged messages whose queues are read. If there are more, only their number is reported.
MOST = 5_000
#: The largest number of unacknowledged messages that are listed one by one.
SHOWN = 20

#: The oldest release that the kit supports, because its client, redis-py 8, does. Valkey reports an equivalent Redis release.
OLDEST = 7

#: The share of its memory at which a server counts as full.
FULL = 0.9


def facts(app: Celery, connection: Connection, _: Environ) -> Server:
    """Ask the server of `connection`. Raises the connection's errors if it does not answer."""
    channel: Channel = connection.default_channel
    # The channel's own connections, but not its client, which adds the key prefix for some commands only.
    client = cast("Client", Redis(connection_pool=cast("ConnectionPool", channel.client.connection_pool)))
    steps, prefix = channel.priority_steps, channel.global_keyprefix
    info = client.info()
    keys = client.scan_iter(match=f"{prefix}_kombu.binding.*", count=1_000)
    bound = [member for key in keys for member in client.smembers(key)]
    paused = _paused(client, prefix)
    names = known_queues(app, (*(_text(member).split(channel.sep)[-1] for member in bound), *paused))
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
        mine_held, oldest = held[name] if held is not None else None, max(ages, default=None)
        queues.append(Queue(name, sum(mine[0::2]), mine_held, None, oldest, name in paused))
    notes = [f"{answers[-1]} messages are unacknowledged"] if held is None else []
    found, holders = faults(info, "broker"), _holders(channel, client, answers[-1])
    if channel.replicas:
        said, lacks = replicas(info, channel.known_replicas())
        notes.append(said)
        found += lacks
    count, until, moved = delayed.waiting(client, prefix)
    if count:
        next_one = f"due in {until:.0f} s" if until > 0 else f"due since {-until:.0f} s"
        notes.append(f"{count} messages wait for their ETA, the next one is {next_one}")
        if until < -delayed.OVERDUE and not moved and not paused:  # workers that consume nothing move none
            found.append(
                (
                    f"{count} messages wait for their ETA, the first since {-until:.0f} s too long: no worker moves them",
                    "start a worker of the kit with ENGINE=fast: it moves those of every queue",
                )
            )
    memory = info["used_memory"]
    return Server(*product_of(info), queues, memory, notes=notes, faults=found, held=holders, delayed=count)


def _paused(client: Client, prefix: str) -> set[str]:
    try:
        return pauses.names(client, prefix)
    except ResponseError:  # somebody has put something else there, or the account has no right to read it
        return set()


def product_of(info: Headers) -> tuple[str, str]:
    """The server's product and version, from its answer to INFO."""
    valkey = info.get("valkey_version")
    return ("Valkey", str(valkey)) if valkey else ("Redis", str(info["redis_version"]))


def faults(info: Headers, role: str) -> list[tuple[str, str]]:
    """Settings in the answer to INFO that lose tasks or results, with their remedies. `role`: broker, or results server."""
    found = []
    if int(str(info["redis_version"]).partition(".")[0]) < OLDEST:
        found.append((f"the {role} is {' '.join(product_of(info))}, too old for redis-py", f"Redis {OLDEST} or later"))
    if (policy := info.get("maxmemory_policy")) != "noeviction":
        found.append((f"the {role} evicts keys when its memory is full ({policy})", "set maxmemory-policy noeviction"))
    if role == "broker" and not info.get("aof_enabled"):
        found.append(("the broker writes no append-only file: a restart loses tasks", "set appendonly yes"))
    if (most := info.get("maxmemory")) and info["used_memory"] > FULL * most:
        found.append((f"the {role} uses {info['used_memory'] / 1e6:.0f} MB of its {most / 1e6:.0f} MB", "raise maxmemory"))
    return found


def replicas(info: Headers, known: int) -> tuple[str, list[tuple[str, str]]]:
    """The replicas that a primary names in its answer to INFO, in words, and what is wrong if they are fewer than known."""
    each = [cast("Headers", info[f"slave{number}"]) for number in range(cast("int", info["connected_slaves"]))]
    there = [str(one["ip"]) for one in each if one["state"] == "online"]
    said = f"{len(there)} of {known} replicas follow the primary{': ' if there else ''}{', '.join(sorted(there))}"
    if len(there) >= known:
        return said, []
    one_more = "one more, and it refuses to write" if there else "it refuses to write"
    return said, [
        (
            f"only {len(there)} of {known} replicas of the broker follow its primary: {one_more}",
            "'make ps' shows which server is down, 'make logs' why",
        )
    ]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _held(client: Client, key: str, number: int) -> Counter[str] | None:
    """How many unacknowledged messages each queue has; None if there are more than MOST."""
    if number > MOST:
        return None
    return Counter(json.loads(value)[2] for value in client.hvals(key))


def _holders(channel: Channel, client: Client, number: int) -> list[Held]:
    """Who holds the unacknowledged messages, by the leases of `leases.py`. More than SHOWN are only counted, by worker."""
    unacked, index = (f"{channel.global_keyprefix}{key}" for key in (channel.unacked_key, channel.unacked_index_key))
    pipe = client.pipeline(transaction=False)
    (seconds, microseconds), ends = pipe.time().zrange(f"{unacked}.leases", 0, -1, withscores=True).execute()
    now, owners = seconds + microseconds / 1e6, [_text(owner) for owner, _ in ends]
    for owner in owners:
        pipe.zrange(f"{unacked}.held:{owner}", 0, -1, withscores=True)
    *holdings, times = pipe.zrange(index, 0, -1, withscores=True).execute()
    since = dict(times)
    holders, holder_of = [Held("", dead=None)], dict.fromkeys(since, 0)
    for (_, end), owner, holding in zip(ends, owners, holdings, strict=True):
        holders.append(Held(owner.rpartition("/")[0], dead=max(0.0, now - end) if end < now else None))
        holder_of |= {tag: len(holders) - 1 for tag, time_ in holding if since.get(tag) == time_}
    if number > SHOWN:
        counted = Counter(holder_of.values())
        return [replace(holders[place], number=count) for place, count in sorted(counted.items())]
    return [_one(holders[holder_of.get(tag, 0)], record) for tag, record in client.hgetall(unacked).items()]


def _one(holder: Held, record: bytes) -> Held:
    message, _, queue = json.loads(record)
    headers = message.get("headers") or {}
    return replace(holder, queue=str(queue), task=str(headers.get("task") or ""), id=str(headers.get("id") or ""))


def _age(message: bytes | None) -> float | None:
    if not message:
        return None
    payload = json.loads(message)
    sent = payload.get("headers", {}).get(SENT)
    return max(0.0, time.time() - max(sent, (delayed.due(payload) or 0) / 1_000)) if sent else None
