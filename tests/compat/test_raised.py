"""A task fails with whatever it raises. With plain Celery that holds only on prefork: fix raised_in_process."""

from collections.abc import Callable
from typing import Any

import pytest

from celery_kit.pools.table import POOLS
from tests.compat.conftest import PAIRS
from tests.compat.rig import KIT, SIDES, Place, Side, outcomes, workers

#: By what a task raises: the exception with which it fails.
FAILS = {
    "cancelled": "CancelledError",
    "own": "OwnError",
    "generator": "GeneratorExit",
}
#: Combinations in which exceptions that stop a worker, or a greenlet, have no such effect.
IN_A_THREAD = {"memory": "MemoryError", "greenlet": "GreenletExit"}
IN_A_GREENLET = {"memory": "MemoryError", "timeout": "Timeout"}
MORE = {"threads": IN_A_THREAD, "gevent": IN_A_GREENLET}


@pytest.mark.parametrize("pool", [pool for pool in POOLS if any(pool == one for _, one in PAIRS)])
def test_whatever_a_task_raises_is_its_end(places: Callable[[str], Place], pool: str) -> None:
    """No exception of a task may occupy a slot for good: the task fails, its errbacks run, and the worker goes on."""
    fails = FAILS | MORE.get(pool, {})
    expected: dict[str, Any] = {**{what: {f"FAILURE {name}": 40} for what, name in fails.items()}, "then": 3}
    names = SIDES if pool == "prefork" else KIT
    with workers(*(Side(name, places("redis")) for name in names), pool=pool) as sides:
        found = outcomes(sides, "raised:ends", *fails)
        for name, side in sides.items():
            assert found[name] == expected, side.said[-3_000:]
        called = outcomes(sides, "raised:callbacks", "cancelled")
        assert called == {name: ["'CancelledError'", "CancelledError"] for name in names}
        assert all(side.alive for side in sides.values())
