"""Redis, and other servers that use its protocol."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from celery import Celery
from redis import Redis

from celery_kit.base.target import ROOT
from celery_kit.brokers.redis.broker import SENTINELS
from celery_kit.brokers.redis.broker import SERVERS as NODES
from celery_kit.brokers.redis.facts import product_of
from testbed.servers.contract import ADMIN, APP, PASSWORD, SECURE, Container, Faults, Port, Server, secured

RESTORE_AFTER = 20  # seconds; of plain Celery, and somewhat more than the kit's workers take by default


def _version(port: Port) -> str:
    url = secured(f"redis://{APP}:{PASSWORD}@127.0.0.1:{port(6379)}/0")
    return " ".join(product_of(Redis.from_url(url).info("server")))


def _restore_visible(app: Celery) -> None:
    """Restore the messages of a killed worker. Any process may do so after the visibility timeout, which is 0 here."""
    with app.connection_for_write(transport_options={"visibility_timeout": 0}) as connection:
        channel: Any = connection.default_channel
        channel.qos.restore_visible(interval=1)


def _put_items(app: Celery, queue: str) -> int:
    """Put items into a queue that are not messages of kombu's. Returns their number."""
    about = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": queue}, "body_encoding": "base64"}
    whole: dict[str, Any] = {"body": "e30=", "headers": {}, "properties": about}
    shapes: list[Any] = [5, None, [], {}, {"properties": {}}, {**whole, "headers": "text"}, {**whole, "body": "!!!"}]
    shapes += [{**whole, "properties": {**about, **wrong}} for wrong in ({"body_encoding": "rot13"}, {"delivery_info": "text"})]
    items = [b"", b"garbage", b"\xff\xff", *(json.dumps(shape).encode() for shape in shapes)]
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.client.lpush(queue, *items)
    return len(items)


def _no_connections(port: Port) -> Callable[[], Any]:
    url = secured(f"redis://{ADMIN}:{PASSWORD}@127.0.0.1:{port(6379)}/0")
    redis = Redis.from_url(url, socket_timeout=5, single_connection_client=True)  # the only one that stays
    redis.config_set("maxclients", 1)
    for kind in ("normal", "pubsub"):
        redis.client_kill_filter(skipme=True, _type=kind)

    def accept() -> None:
        redis.config_set("maxclients", 10_000)
        redis.close()

    return accept


def of_protocol(name: str, image: str) -> Server:
    """The row of a server with Redis's protocol, and its configuration. `name`: the prefix of its programs and its variable."""
    as_admin = ("--user", ADMIN, "--pass", PASSWORD, "--no-auth-warning")
    by = ("-s", "/tmp/redis.sock") if SECURE else ()  # deploy/brokers/redis/start.sh
    set_memory = (f"{name}-cli", *by, *as_admin, "config", "set", "maxmemory")
    return Server(
        url=f"redis://{APP}:{PASSWORD}@{{host}}:{{port}}/{{namespace}}",
        port=6379,
        default="0",
        namespace=lambda number, _: str(2 + number),  # databases 0 and 1 are the stack's own
        version=_version,
        container=Container(
            image=(f"{name.upper()}_IMAGE", image),
            data="/data",
            uid=999,
            files={
                str(ROOT / "deploy/brokers/redis/redis.conf"): "/usr/local/etc/redis/redis.conf",
                str(ROOT / "deploy/brokers/redis/start.sh"): "/usr/local/bin/start.sh",
                str(ROOT / "deploy/brokers/redis/users.acl"): "/usr/local/lib/celery-kit/users.acl",
                str(ROOT / "deploy/compose/keys.sh"): "/usr/local/lib/celery-kit/keys.sh",
            },
            passwords=("REDIS_PASSWORD", "ADMIN_PASSWORD"),
            command=("sh", "/usr/local/bin/start.sh"),
            environment={"KEYS": "/data/celery-kit", "SERVER": name},
        ),
        faults=Faults(
            memory=((*set_memory, "1mb"), (*set_memory, "0")),
            leave=0,
            no_connections=_no_connections,
            quiet=RESTORE_AFTER + 25.0,
            restore_after=RESTORE_AFTER,
        ),
        restore=_restore_visible,
        put_raw=_put_items,
    )


server = of_protocol("redis", "redis:8")
sentinel = replace(
    server,
    url=server.url.replace("redis://", "sentinel://"),
    port=26379,
    hosts=SENTINELS,
    nodes=NODES,
)
