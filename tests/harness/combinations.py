"""THE table of combinations. Test bodies name no product: they use a combination, or a capability of its rows."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

import pytest

from celery_kit.base.capabilities import Limit
from celery_kit.base.refusals import choose
from celery_kit.brokers import BROKERS, Broker
from celery_kit.pools.table import POOLS, Pool
from celery_kit.profile import limits
from celery_kit.results import BACKENDS, Backend
from testbed.servers import EVERY, SERVERS


@dataclass(frozen=True)
class Combination:
    """A broker, a result backend and a pool."""

    broker: Broker
    backend: Backend
    pool: Pool

    def __str__(self) -> str:
        return f"{self.broker.name}-{self.backend.name}-{self.pool.name}"

    def limit(self, feature: str) -> Limit | None:
        """Why a feature does not work with this combination, according to its packages; None: it works."""
        return limits(self.broker, self.backend, self.pool).get(feature)


def _chosen(axis: str, rows: dict[str, Any]) -> list[Any]:
    """The rows of an axis that BROKER=, BACKEND= or POOL= names; if it is not set, all but the further forms of a broker."""
    given = os.environ.get(axis)
    usual = [row for name, row in rows.items() if axis != "BROKER" or name in SERVERS]
    return [rows[choose(axis, name, rows)] for name in given.split(",")] if given else usual


COMBINATIONS: list[Combination] = [
    Combination(*rows)
    for rows in product(
        _chosen("BROKER", {name: BROKERS[name] for name in EVERY}), _chosen("BACKEND", BACKENDS), _chosen("POOL", POOLS)
    )
]


T = TypeVar("T")


def one_of(values: Iterable[T], turn: int = 0) -> list[T]:
    """All of them; with QUICK=1 one: that of the `turn`, counted round."""
    every = list(values)
    return [every[turn % len(every)]] if os.environ.get("QUICK") and every else every


def marks(combination: Combination) -> list[str]:
    """A mark for each axis: `-m "redis and gevent"`, `-m "rabbitmq and backend_rpc"`."""
    return [combination.broker.name, f"backend_{combination.backend.name}", combination.pool.name]


def parameters(combinations: list[Combination]) -> list[Any]:
    return [pytest.param(one, id=str(one), marks=[getattr(pytest.mark, name) for name in marks(one)]) for one in combinations]
