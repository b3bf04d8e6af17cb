"""Redis as the broker: a server that keeps its data (append-only file), database 0."""

import socket
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

from celery_kit.base.capabilities import Limit
from celery_kit.base.choices import MOST_CONCURRENCY, secure
from celery_kit.base.refusals import refuse
from celery_kit.base.signals import celeryd_init
from celery_kit.base.types import Connection, Options
from celery_kit.base.versions import unmet
from celery_kit.brokers.contract import Broker, Copy, Environ, account, tls
from celery_kit.brokers.redis.bulk import Bulk, like
from celery_kit.engine.parts import PARTS, engine, on
from celery_kit.fixes import needed

#: The kit's transport, with AMQP's priorities, dead letters, and the fetch of ENGINE=fast. None: kombu's own is used.
TRANSPORT = "celery_kit.brokers.redis.transport:Transport" if needed("transport of Redis") else None
#: Whether delayed tasks wait on the server (celery_kit/brokers/redis/delayed.py).
DELAYS = TRANSPORT is not None and not unmet(PARTS["fetch"].needs)

if TYPE_CHECKING:
    from celery_kit.base.choices import Choices
    from celery_kit.brokers.redis.transport import Transport


def url(environ: Environ) -> str:
    """The URL of the host `broker`, database 0."""
    user, secret = (quote(part, safe="") for part in account(environ, "BROKER"))
    secured = tls(environ)
    return f"redis{secured and 's'}://{secret and f'{user}:{secret}@'}broker:6379/0{secured}"


def settings(profile: "Choices") -> Options:
    """Celery's settings for this broker."""
    return {
        "broker_transport_options": {
            # Read by celery_kit/produce/publishing.py and celery_kit/brokers/redis/transport.py
            "engine": engine(profile.engine, "fetch"),
            "take_ahead": not profile.prefetch and on("take_ahead"),  # of ENGINE=fast: celery_kit/engine/prefetch.py
            # Seconds without a sign of life after which a worker counts as dead, and its messages are requeued (leases.py).
            "lease_seconds": profile.lease,
            # Seconds until a message is redelivered that a worker of plain Celery holds (celery #5935), or nobody.
            "visibility_timeout": profile.visibility_timeout,
            # Look for such messages every 5 s. kombu looks at every tenth of 10 s, which adds 100 s. A worker that dies while
            # it looks locks the others out for as long as the last of these says.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            # By default kombu passes None, and a frozen server then blocks the publisher for ever (celery #6911).
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            # Only a limit: one connection for each running task's acknowledgement. kombu's 10 fail on green pools (#1350).
            "max_connections": MOST_CONCURRENCY + 20,
            # Where a program of another network reaches the servers that sentinels name (sentinel.py).
            "addresses": profile.addresses,
        },
    }


_nodes: list[str] = []


def node() -> str:
    """The node name of this process's worker; of another consumer, the machine's name."""
    return _nodes[-1] if _nodes else socket.gethostname()


def _named(sender: str, **_: object) -> None:
    _nodes.append(sender)


celeryd_init.connect(_named, weak=False)


def close_inherited(connection: Connection) -> None:
    """In a forked child: close the parent's connections that wait for messages. redis-py itself discards the others."""
    transport: Transport | None = getattr(connection, "_transport", None)
    for channel in list(transport.channels) if transport else ():
        for name in ("client", "subclient"):
            if own := getattr(vars(channel).get(name), "connection", None):
                own.disconnect()  # in a forked child redis-py only closes the socket


def explain(error: BaseException) -> str | None:
    """One line on a command that the account has no right to. None for any other error."""
    from redis.exceptions import NoPermissionError  # only where something has failed

    if not isinstance(error, NoPermissionError):
        return None
    return f"Redis refuses this account: {error}; give it the right, or use the account of another role (docs/security.md)"


def save(url: str) -> None:
    """Have the server write all databases as they are at one moment to dump.rdb (BGSAVE), and wait until that is done.

    Raises redis.ConnectionError, and redis.ResponseError if the server could not write it.
    """
    from redis import Redis, ResponseError  # only here: `make backup`

    with Redis.from_url(url, socket_timeout=60) as client:

        def saves() -> int:
            """How many it has made, once it makes none."""
            while (found := client.info("persistence"))["rdb_bgsave_in_progress"]:
                time.sleep(0.1)
            if found["rdb_last_bgsave_status"] != "ok":
                raise ResponseError("its last BGSAVE failed; its log says why")
            return int(found["rdb_saves"])

        before = saves()
        client.bgsave(schedule=True)  # after a rewrite of the append-only file, if one is on
        while saves() == before:
            time.sleep(0.1)


#: A snapshot is made the first file of an append-only file: with `appendonly yes` a server reads no other. The format:
#: https://redis.io/docs/latest/operate/oss_and_stack/management/persistence/#how-it-works
COPY = Copy(
    volume="redis-data",
    version=("redis-server", "--version"),
    save=save,
    without=("appendonlydir/*", "temp-*"),
    moved={"dump.rdb": "appendonlydir/appendonly.aof.1.base.rdb"},
    added={"appendonlydir/appendonly.aof.manifest": "file appendonly.aof.1.base.rdb seq 1 type b\n"},
)

#: On ENGINE=plain workers hold them, and list them.
WAITS = Limit(
    "differently", "the list is empty: the broker holds the task, no worker does", "celery_kit/brokers/redis/delayed.py"
)

broker = Broker(
    name="redis",
    schemes=("redis", "rediss"),
    url=url,
    settings=settings,
    dead_letters="celery_kit.brokers.redis.dead:RedisDeadLetters" if TRANSPORT else None,
    facts="celery_kit.brokers.redis.facts:facts",
    pauses="celery_kit.brokers.redis.pauses:RedisPauses",
    end="celery_kit.brokers.redis.moving:RedisEnd" if TRANSPORT else None,
    compose_file="compose.redis.yaml",
    transports={"redis": TRANSPORT, "rediss": TRANSPORT} if TRANSPORT else {},
    delays_tasks=DELAYS,
    bulk=Bulk,
    like=like,
    lead="celery_kit.brokers.redis.beats:Lead" if TRANSPORT else None,
    explain=explain,
    close_inherited=close_inherited,
    copy=COPY,
    limits={
        "quorum_queues": Limit("cannot", "a queue is a list, on one server; the argument is ignored", "seen by this test"),
        **({"scheduled": WAITS} if DELAYS else {}),
    },
    backend_limits={
        "rpc": {
            "result_expires": Limit(
                "differently",
                "an answer that nobody fetches stays on the broker: its list gets no time to live",
                "kombu/transport/redis.py, _put: x-expires is known only to the channel that declared the queue, the sender's",
            ),
        },
    },
)


#: The sentinels of a stack, and the servers that they name.
SENTINELS, SERVERS = (tuple(f"{role}-{number}" for number in (1, 2, 3)) for role in ("sentinel", "broker"))


def _of_the_sentinels(environ: Environ, database: int) -> str:
    """The URLs of the sentinels, with a semicolon between them. They have the accounts of the servers. Refuses SECURE."""
    if secured := secure(environ):
        refuse(f"SECURE={secured}: sentinels have no TLS here; leave it out, or choose another broker")
    user, secret = (quote(part, safe="") for part in account(environ, "BROKER"))
    return ";".join(f"sentinel://{secret and f'{user}:{secret}@'}{host}:26379/{database}" for host in SENTINELS)


#: A primary with replicas, which sentinels watch (sentinel.py). They know no TLS here.
sentinel = replace(
    broker,
    name="redis-sentinel",
    schemes=("sentinel",),
    url=partial(_of_the_sentinels, database=0),
    results_url=partial(_of_the_sentinels, database=1),
    compose_file="compose.redis-sentinel.yaml",
    transports={"sentinel": "celery_kit.brokers.redis.sentinel:Transport"} if TRANSPORT else {},
    hosts=SENTINELS,
    nodes=SERVERS,
    has_tls=False,
)
