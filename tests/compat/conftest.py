"""Servers that the three sides share, and on each a worker of each side; QUICK=1 takes each pool once and prefork on both."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from celery_kit.pools.table import POOLS
from tests.compat.rig import SIDES, Place, Side
from tests.engine.rig import Server
from tests.integration.bench import Stack
from tests.matrix import SERVERS, virtual_host
from tests.wait import until

QUICK = (
    ("redis", "prefork"), ("rabbitmq", "prefork"), ("redis", "threads"), ("rabbitmq", "solo"),
    ("redis", "gevent"), ("rabbitmq", "eventlet"),
)  # fmt: skip
EVERY = tuple((broker, pool) for broker in SERVERS for pool in POOLS)
PAIRS = [
    pair
    for pair in (QUICK if os.environ.get("QUICK") else EVERY)
    if pair[0] in (os.environ.get("BROKER") or pair[0]).split(",") and pair[1] in (os.environ.get("POOL") or pair[1]).split(",")
]


@pytest.fixture(scope="session")
def places() -> Iterator[Callable[[str], Place]]:
    """place(broker's name): a server of the tests' own, started when it is first asked for.

    COMPAT_RABBITMQ="amqp-port management-port" takes a RabbitMQ that runs, with the stacks' account.
    """
    redis = Server()
    stack: list[Stack] = []
    known = {"redis": Place("redis", f"redis://127.0.0.1:{redis.port}/0", f"redis://127.0.0.1:{redis.port}/1")}

    def rabbitmq() -> Place:
        if given := os.environ.get("COMPAT_RABBITMQ"):
            port, management = given.split()
        else:
            one = Stack("rabbitmq")
            stack.append(one)
            one.compose.services = one.services = ["broker"]
            one.start()
            one.wait()
            until("the broker takes connections", lambda: SERVERS["rabbitmq"].version(one.port))
            port, management = str(one.port(5672)), str(one.port(15672))
        space = virtual_host(f"http://127.0.0.1:{management}/api", f"compat-{uuid4().hex[:8]}")
        return Place("rabbitmq", f"amqp://kit:kit@127.0.0.1:{port}/{space}", known["redis"].results)

    def place(name: str) -> Place:
        if name not in known:
            known[name] = rabbitmq()
        return known[name]

    try:
        yield place
    finally:
        for one in stack:
            one.run("down", "--volumes", "--timeout", "1")
        redis.stop()


@pytest.fixture(scope="session", params=list(SERVERS))
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """Each broker, with results in Redis."""
    return places(request.param)


@pytest.fixture(scope="session", params=PAIRS, ids="-".join)
def sides(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side on one broker and pool, for all tests that leave it as it is; `sides["fast"].client(…)`."""
    broker, pool = request.param
    started: dict[str, Side] = {}
    try:
        for name in SIDES:
            started[name] = Side(name, places(broker)).start(pool)
        yield started
    finally:
        for side in started.values():
            side.stop()


#: A broker, and where results are: None for a Redis server.
SERVED = {"redis": None, "rabbitmq": None, "redis-rpc": "rpc://", "rabbitmq-rpc": "rpc://"}
EVERYWHERE = pytest.mark.parametrize("served", list(SERVED), indirect=True)
BY_RPC = pytest.mark.parametrize("served", [name for name in SERVED if SERVED[name]], indirect=True)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side on threads, for tests of what a client does; `request.param` is of SERVED."""
    place = places(request.param.partition("-")[0])
    place = replace(place, results=SERVED[request.param] or place.results)
    started: dict[str, Side] = {}
    try:
        for name in SIDES:
            started[name] = Side(name, place).start("threads")
        yield started
    finally:
        for side in started.values():
            side.stop()


def outcomes(sides: dict[str, Side], where: str, *arguments: Any, **options: Any) -> dict[str, Any]:
    """What a client of each side gives."""
    return {name: side.client(where, *arguments, **options) for name, side in sides.items()}
