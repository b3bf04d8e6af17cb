"""Celery's embedded worker, on every pool that it has."""

from collections.abc import Callable

import pytest

from tests.compat.conftest import PAIRS
from tests.compat.rig import SIDES, Place, Side

POOLS = [pool for pool in ("prefork", "solo", "threads") if any(pool == one for _, one in PAIRS)]


@pytest.mark.parametrize("pool", POOLS)
def test_an_embedded_worker_does_its_tasks(places: Callable[[str], Place], pool: str) -> None:
    """A fast path is taken where Celery would take its own: an embedded worker has no registry for the fast trace."""
    for name in SIDES:
        side = Side(name, places("redis"), {"POOL": pool})
        assert side.client("embedded:gives", pool) == [list(range(1, 21))] * 2, name


@pytest.mark.parametrize("pool", POOLS)
def test_celerys_fixtures_work(places: Callable[[str], Place], pool: str) -> None:
    """The fixture celery_worker, on the app that celery_app gives."""
    for name in SIDES:
        assert Side(name, places("redis"), {"POOL": pool}).client("embedded:by_fixture", pool) == 0, name
