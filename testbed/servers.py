"""THE table of brokers that run as servers. A new broker has a row here; whoever uses one names no product."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
from celery import Celery
from redis import Redis


def virtual_host(api: str, name: str) -> str:
    """Create one with the stacks' account, through RabbitMQ's management interface at the URL `api`; gives its name."""
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    for path, body in ((f"vhosts/{name}", None), (f"permissions/{name}/kit", rights)):
        requests.put(f"{api}/{path}", json=body, auth=("kit", "kit"), timeout=30).raise_for_status()
    return name


def _new_virtual_host(number: int, port: Callable[[int], int]) -> str:
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
    """How a broker of a stack is reached: the port that it listens on, and what its URL ends with.

    `default`: the namespace that the stack itself uses. `namespace(number, port)`: an empty one; `version(port)`: the product
    and its release. `port` gives the host's port for one of the container.
    """

    url: str
    port: int
    default: str
    namespace: Callable[[int, Callable[[int], int]], str]
    version: Callable[[Callable[[int], int]], str]
    #: Requeue what a killed worker held, now; a broker that sees a connection end does it by itself.
    restore: Callable[[Celery], None] = lambda _: None
    #: Put into a queue what only somebody with the server's own client can; gives how many.
    put_raw: Callable[[Celery, str], int] = lambda _app, _queue: 0


SERVERS: dict[str, Server] = {
    "rabbitmq": Server("amqp://kit:kit@{host}:{port}/{namespace}", 5672, "kit", _new_virtual_host, _rabbitmq_version),
    # Databases 0 and 1 are the stack's own.
    "redis": Server(
        "redis://{host}:{port}/{namespace}",
        6379,
        "0",
        lambda number, _: str(2 + number),
        _redis_version,
        _restore_visible,
        _put_items,
    ),
}
