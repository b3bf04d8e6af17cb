"""What differs between the brokers where a fault is made: their containers, and commands inside of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import requests
from redis import Redis

from celery_kit.base.target import ROOT

Command = tuple[str, ...]
Port = Callable[[int], int]


@dataclass(frozen=True)
class Server:
    """A server's container, from the same image and configuration as the stacks'.

    `image`: the variable that names it, and its default. `files`: on the host, and inside. `data`: where it keeps what it was
    given. `leave`: bytes that a full disk has left; 0 where it looks at writes that fail, its own limit where it watches.
    `memory`: commands that begin and end its memory alarm. `no_connections(port)`: ends all of its
    connections, refuses new ones, and gives what takes them again; `port` gives the host's port for its own.
    """

    image: tuple[str, str]
    data: str
    uid: int
    files: dict[str, str]
    memory: tuple[Command, Command]
    leave: int
    no_connections: Callable[[Port], Callable[[], Any]]
    command: Command = ()
    environment: dict[str, str] = field(default_factory=dict)
    ports: tuple[int, ...] = ()


def _redis_refuses(port: Port) -> Callable[[], Any]:
    redis = Redis(port=port(6379), socket_timeout=5, single_connection_client=True)  # it stays, as the only one
    redis.config_set("maxclients", 1)
    for kind in ("normal", "pubsub"):
        redis.client_kill_filter(skipme=True, _type=kind)

    def takes() -> None:
        redis.config_set("maxclients", 10_000)
        redis.close()

    return takes


def _rabbitmq_refuses(port: Port) -> Callable[[], Any]:
    api = f"http://127.0.0.1:{port(15672)}/api"
    session = requests.Session()
    session.auth = ("kit", "kit")
    limit = f"{api}/vhost-limits/kit/max-connections"
    session.put(limit, json={"value": 0}, timeout=10).raise_for_status()
    for connection in session.get(f"{api}/connections", timeout=10).json():
        session.delete(f"{api}/connections/{quote(connection['name'])}", timeout=10)
    return lambda: session.delete(limit, timeout=10).raise_for_status()


SERVERS: dict[str, Server] = {
    "redis": Server(
        image=("REDIS_IMAGE", "redis:8"),
        data="/data",
        uid=999,
        files={str(ROOT / "deploy/brokers/redis/redis.conf"): "/usr/local/etc/redis/redis.conf"},
        command=("redis-server", "/usr/local/etc/redis/redis.conf"),
        memory=(
            ("redis-cli", "config", "set", "maxmemory", "1mb"),
            ("redis-cli", "config", "set", "maxmemory", "0"),
        ),
        leave=0,
        no_connections=_redis_refuses,
    ),
    "rabbitmq": Server(
        image=("RABBITMQ_IMAGE", "rabbitmq:4-management"),
        data="/var/lib/rabbitmq",
        uid=999,
        files={
            str(ROOT / "deploy/brokers/rabbitmq/celery-kit.conf"): "/etc/rabbitmq/conf.d/20-celery-kit.conf",
        },
        environment={
            **{f"RABBITMQ_DEFAULT_{name}": "kit" for name in ("USER", "PASS", "VHOST")},
            "CONSUMER_TIMEOUT": "30000000",
        },
        memory=(
            ("rabbitmqctl", "-q", "set_vm_memory_high_watermark", "absolute", "1MB"),
            ("rabbitmqctl", "-q", "set_vm_memory_high_watermark", "0.6"),
        ),
        leave=20_000_000,  # below its disk_free_limit of 50 MB
        no_connections=_rabbitmq_refuses,
        ports=(15672,),
    ),
}
