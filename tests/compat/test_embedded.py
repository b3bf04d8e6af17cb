"""Celery's embedded worker, on every pool that it supports."""

from collections.abc import Callable

import pytest

from tests.compat.conftest import PAIRS
from tests.compat.rig import SIDES, Place, Side, outcomes

POOLS = [pool for pool in ("prefork", "solo", "threads") if any(pool == one for _, one in PAIRS)]


@pytest.mark.parametrize("pool", POOLS)
def test_an_embedded_worker_does_its_tasks(places: Callable[[str], Place], pool: str) -> None:
    """The fast path is used only if Celery would use its own: an embedded worker has no registry for the fast trace."""
    sides = {name: Side(name, places("redis"), {"POOL": pool}) for name in SIDES}
    assert outcomes(sides, "embedded:gives", pool) == dict.fromkeys(SIDES, [list(range(1, 21))] * 2)


@pytest.mark.parametrize("pool", POOLS)
def test_celerys_fixtures_work(places: Callable[[str], Place], pool: str) -> None:
    """The fixture celery_worker, on the app of the fixture celery_app."""
    sides = {name: Side(name, places("redis"), {"POOL": pool}) for name in SIDES}
    assert outcomes(sides, "embedded:by_fixture", pool) == dict.fromkeys(SIDES, 0)
