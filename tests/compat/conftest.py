"""Servers that the three sides share, with a worker of each side. QUICK=1 runs each pool once, and prefork on both brokers."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.compat.rig import SIDES, Place, Side, workers
from tests.harness.groups import Grouped, file_and_broker
from tests.harness.servers import Server, rabbitmq

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
    """place(broker's name): a server for these tests, started at the first call."""
    with ExitStack() as started:
        redis = started.enter_context(Server())
        known = {"redis": Place("redis", *redis.urls.values())}

        def place(name: str) -> Place:
            if name not in known:
                url, _ = started.enter_context(rabbitmq())
                known[name] = Place(name, url, known["redis"].results)
            return known[name]

        yield place


@pytest.fixture(scope="session", params=list(SERVERS))
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """Each broker, with results in Redis."""
    return places(request.param)


@pytest.fixture(scope="session", params=PAIRS, ids="+".join)
def sides(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side on one broker and pool, for tests that do not change it: `sides["fast"].client(…)`."""
    broker, pool = request.param
    with workers(*(Side(name, places(broker)) for name in SIDES), pool=pool) as started:
        yield started


#: A test that only the full run includes.
FULL = pytest.mark.full


def covering(*axes: Iterable[Any], turns: int = 2) -> list[Any]:
    """Every combination of these axes. The quick run omits most, but has each value at least `turns` times.

    Give `parametrize` the fixtures' own scope, too: beside a parameter that is no fixture, pytest takes that of the function.
    """
    values = [list(axis) for axis in axes]
    steps = product(range(turns), range(max(map(len, values))))
    quick = {
        tuple(axis[(number + turn * place) % len(axis)] for place, axis in enumerate(values))
        for turn, number in steps
        if all(values)  # BROKER= and POOL= may leave none of the quick run's pairs
    }
    return [pytest.param(*row, marks=() if row in quick else FULL) for row in product(*values)]


@pytest.hookimpl(trylast=True)  # after pytest's own order, in which workers are started again for each row of a table
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only the full run includes, and let tests with the same workers follow one another."""
    left_out = [item for item in items if os.environ.get("QUICK") and item.get_closest_marker("full")]
    config.hook.pytest_deselected(items=left_out)
    groups = dict[Any, int]()
    kept = [item for item in items if item not in left_out]
    items[:] = sorted(kept, key=lambda item: groups.setdefault(_workers(item), len(groups)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    return Grouped(config, log, group_of)


def group_of(nodeid: str) -> str:
    """Tests with the same workers of the session, or of a file and a broker."""
    found = re.search(r"\[(\w+\+\w+)", nodeid) or re.search(r"/test_(?:forks|results)\.py::.*\[(\w+(?:-rpc)?)[-\]]", nodeid)
    return found[1] if found else file_and_broker(nodeid)


def _workers(item: pytest.Item) -> Any:
    """Which of the session's workers a test uses."""
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    return params.get("sides") or params.get("served")


#: A broker, and its result backend: None for a Redis server.
SERVED = {"redis": None, "rabbitmq": None, "redis-rpc": "rpc://", "rabbitmq-rpc": "rpc://"}
EVERYWHERE = pytest.mark.parametrize("served", list(SERVED), indirect=True)
BY_RPC = pytest.mark.parametrize("served", [name for name in SERVED if SERVED[name]], indirect=True)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side on threads, for tests of clients. `request.param` is an item of SERVED."""
    place = places(request.param.partition("-")[0])
    place = replace(place, results=SERVED[request.param] or place.results)
    with workers(*(Side(name, place) for name in SIDES)) as started:
        yield started
