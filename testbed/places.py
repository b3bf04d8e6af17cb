"""Servers, reached inside the engine's network: one of each broker, as its compose file starts it.

Docker's published ports distort measurements: plain Celery on Redis has 0.6 of its throughput through one.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import requests
from redis import Redis

from testbed.servers import EVERY
from testbed.servers.contract import ADMIN, APP, PASSWORD
from testbed.servers.rabbitmq import virtual_host
from testbed.stack import Stack


@dataclass
class Place:
    """An empty broker and an empty results server, for one round. `broker()`: its connections, queues and messages."""

    broker_url: str
    results_url: str
    results: Any
    redis: Any
    broker: Callable[[], dict[str, int]]
    stack: Stack

    def trips(self) -> int:
        """How often Redis has read from a client, which is the number of round trips. Each stack has one Redis server."""
        return int(self.results.info("stats")["total_reads_processed"])


def _redis_holds(redis: Any) -> dict[str, int]:
    lists = [name for name in redis.scan_iter(count=1_000) if redis.type(name) == b"list"]
    messages = sum(map(redis.llen, lists)) + redis.hlen("unacked")
    return {"connections": int(redis.info("clients")["connected_clients"]), "queues": len(lists), "messages": int(messages)}


def _rabbitmq_holds(api: str, name: str) -> dict[str, int]:
    def get(path: str) -> list[dict[str, Any]]:
        answer = requests.get(f"{api}/{path}", auth=(APP, PASSWORD), timeout=30)
        answer.raise_for_status()
        return list(answer.json())

    queues = get(f"queues/{name}?disable_stats=true&enable_queue_totals=true")
    return {
        "connections": len(get(f"vhosts/{name}/connections")),
        "queues": len(queues),
        "messages": sum(queue.get("messages", 0) for queue in queues),
    }


class Servers:
    """One broker's stack. Use it in a `with`."""

    def __init__(self, broker: str) -> None:
        self.stack = Stack(broker)
        self.server = EVERY[broker]
        self.has_results = self.stack.results != "broker"

    def __enter__(self) -> "Servers":
        self.stack.services = sorted({"broker", self.stack.results})
        self.stack.start()
        self.broker = self.address("broker")
        self.results = self.address(self.stack.results)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.stop()

    def address(self, service: str) -> str:
        """The service's address in the engine's network."""
        networks = self.stack.container(service).attrs["NetworkSettings"]["Networks"]
        return str(next(iter(networks.values()))["IPAddress"])

    def version(self) -> str:
        return self.server.version(self.stack.port)

    @contextmanager
    def place(self, which: int = 0) -> Iterator[Place]:
        """Empty servers. Data of an earlier round is deleted. `which`: the number of the place, if several are open at once;
        the lowest is entered first.
        """
        broker, kept = 2 * which, 2 * which + 1
        account: dict[str, Any] = {"username": ADMIN, "password": PASSWORD}
        results = Redis(host=self.results, db=kept, **account)
        if not which:
            results.flushall()
        if not self.has_results:
            url = f"redis://{APP}:{PASSWORD}@{self.broker}:6379"
            redis = Redis(host=self.broker, db=broker, **account)
            yield Place(f"{url}/{broker}", f"{url}/{kept}", results, redis, lambda: _redis_holds(redis), self.stack)
            return
        api = f"http://{self.broker}:15672/api"
        name = virtual_host(api, f"bench{uuid.uuid4().hex[:8]}")
        try:
            url = self.server.url.format(host=self.broker, port=self.server.port, namespace=name)
            kept_at = f"redis://{APP}:{PASSWORD}@{self.results}:6379/{kept}"
            yield Place(url, kept_at, results, results, lambda: _rabbitmq_holds(api, name), self.stack)
        finally:
            requests.delete(f"{api}/vhosts/{name}", auth=(ADMIN, PASSWORD), timeout=60).raise_for_status()
