"""Whatever a task raises is its end; on plain Celery it is that on prefork alone."""

from collections.abc import Callable

import pytest

from celery_kit.pools.table import POOLS
from tests.compat.conftest import PAIRS
from tests.compat.rig import KIT, Place, worker
from tests.harness.workers import PLAIN_CELERY

#: By what a task raises, as what it fails.
FAILS = {
    "cancelled": "CancelledError",
    "own": "OwnError",
    "generator": "GeneratorExit",
}
#: Where nobody sees what is raised in order to end a worker, or a greenlet.
IN_A_THREAD = {"memory": "MemoryError", "greenlet": "GreenletExit"}
IN_A_GREENLET = {"memory": "MemoryError", "timeout": "Timeout"}
MORE = {"threads": IN_A_THREAD, "gevent": IN_A_GREENLET}
RUNS = [
    (PLAIN_CELERY, "prefork"),
    *((engine, pool) for engine in KIT for pool in POOLS if any(pool == one for _, one in PAIRS)),
]


@pytest.mark.parametrize(("side", "pool"), RUNS, ids=map("-".join, RUNS))
def test_whatever_a_task_raises_is_its_end(places: Callable[[str], Place], side: str, pool: str) -> None:
    """Nothing that a task raises may cost its worker a place: it fails with that, its errbacks run, and the worker lives."""
    fails = FAILS | MORE.get(pool, {})
    with worker(side, places("redis"), pool) as one:
        found = one.client("raised:ends", *fails)
        assert found == {**{what: {f"FAILURE {name}": 40} for what, name in fails.items()}, "then": 3}, one.said[-3_000:]
        assert one.client("raised:callbacks", "cancelled") == ["'CancelledError'", "CancelledError"]
        assert one.alive
