"""THE table of combinations. Test bodies name no product: they take a combination, or a capability of its rows."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
import requests
from celery import Celery
from redis import Redis

from celery_kit.base.capabilities import Limit
from celery_kit.base.refusals import choose
from celery_kit.brokers import BROKERS, Broker
from celery_kit.pools.table import POOLS, Pool
from celery_kit.profile import limits
from celery_kit.results import BACKENDS, Backend


@dataclass(frozen=True)
class Combination:
    """A broker, a result backend and a pool."""

    broker: Broker
    backend: Backend
    pool: Pool

    def __str__(self) -> str:
        return f"{self.broker.name}-{self.backend.name}-{self.pool.name}"

    def limit(self, feature: str) -> Limit | None:
        """What the rooms say about a feature here; None: it works."""
        return limits(self.broker, self.backend, self.pool).get(feature)


def virtual_host(api: str, name: str) -> str:
    """Make one for the stacks' account, through RabbitMQ's management interface at the URL `api`; gives its name back."""
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    for path, body in ((f"vhosts/{name}", None), (f"permissions/{name}/kit", rights)):
        requests.put(f"{api}/{path}", json=body, auth=("kit", "kit"), timeout=30).raise_for_status()
    return name


def _virtual_host(number: int, port: Callable[[int], int]) -> str:
    return virtual_host(f"http://127.0.0.1:{port(15672)}/api", f"test{number}")


def _rabbitmq_version(port: Callable[[int], int]) -> str:
    found = requests.get(f"http://127.0.0.1:{port(15672)}/api/overview", auth=("kit", "kit"), timeout=10).json()
    return f"RabbitMQ {found['rabbitmq_version']}"


def _redis_version(port: Callable[[int], int]) -> str:
    return f"Redis {Redis(port=port(6379)).info('server')['redis_version']}"


def _restore_visible(app: Celery) -> None:
    """Have the broker hand out what a killed worker held: any process may once the visibility timeout is over; here it is 0."""
    with app.connection_for_write(transport_options={"visibility_timeout": 0}) as connection:
        channel: Any = connection.default_channel
        channel.qos.restore_visible(interval=1)


def _put_items(app: Celery, queue: str) -> int:
    """Put items into a queue that are no messages of kombu's; gives their number."""
    about = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": queue}, "body_encoding": "base64"}
    whole: dict[str, Any] = {"body": "e30=", "headers": {}, "properties": about}
    shapes: list[Any] = [5, None, [], {}, {"properties": {}}, {**whole, "headers": "text"}, {**whole, "body": "!!!"}]
    shapes += [{**whole, "properties": {**about, **wrong}} for wrong in ({"body_encoding": "rot13"}, {"delivery_info": "text"})]
    items = [b"", b"garbage", b"\xff\xff", *(json.dumps(shape).encode() for shape in shapes)]
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.client.lpush(queue, *items)
    return len(items)


@dataclass(frozen=True)
class Server:
    """How the tests reach a broker: the port that it listens on, and what its URL ends with to isolate a combination.

    `namespace(number, port)`, `version(port)`: `port` gives the host's port for one of the container.
    """

    url: str
    port: int
    namespace: Callable[[int, Callable[[int], int]], str]
    version: Callable[[Callable[[int], int]], str]
    #: Hand out again what a killed worker held, now; a broker that sees a connection end does it by itself.
    restore: Callable[[Celery], None] = lambda _: None
    #: Put into a queue what only somebody with the server's own client can; gives how many.
    put_raw: Callable[[Celery, str], int] = lambda _app, _queue: 0


SERVERS: dict[str, Server] = {
    "rabbitmq": Server("amqp://kit:kit@{host}:{port}/{namespace}", 5672, _virtual_host, _rabbitmq_version),
    # Databases 0 and 1 are the stack's own.
    "redis": Server(
        "redis://{host}:{port}/{namespace}",
        6379,
        lambda number, _: str(2 + number),
        _redis_version,
        _restore_visible,
        _put_items,
    ),
}


def _chosen(axis: str, rows: dict[str, Any]) -> list[Any]:
    """All rows of an axis, or those that BROKER=, BACKEND= or POOL= names."""
    given = os.environ.get(axis)
    return [rows[choose(axis, name, rows)] for name in given.split(",")] if given else list(rows.values())


COMBINATIONS: list[Combination] = [
    Combination(*rows)
    for rows in product(
        _chosen("BROKER", {name: BROKERS[name] for name in SERVERS}), _chosen("BACKEND", BACKENDS), _chosen("POOL", POOLS)
    )
]


def marks(combination: Combination) -> list[str]:
    """A mark for each axis: `-m "redis and gevent"`, `-m "rabbitmq and backend_rpc"`."""
    return [combination.broker.name, f"backend_{combination.backend.name}", combination.pool.name]


def parameters(combinations: list[Combination]) -> list[Any]:
    return [pytest.param(one, id=str(one), marks=[getattr(pytest.mark, name) for name in marks(one)]) for one in combinations]
