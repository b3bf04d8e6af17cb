"""What `celery worker` accepts and a pool cannot do is refused, or said, in one line."""

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_kit.pools.table import POOLS, Pool, check


def autoscaled(pool: Pool) -> str:
    return {"threads": "refused", "solo": "nothing"}.get(_kin(pool), "served")


def _kin(pool: Pool) -> str:
    """The pool whose limits it has: a pool that is added may be another's kin."""
    return next(name for name, one in POOLS.items() if one.limits is pool.limits)


#: What is asked for, and what becomes of it on a pool: "refused", "nothing" or "served".
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any], Callable[[Pool], str]]] = {
    "autoscale": ({}, {"autoscale": "4,1"}, autoscaled),
    "beat": ({}, {"beat": True}, lambda pool: "refused" if _kin(pool) in ("gevent", "eventlet") else "served"),
    "recycling": ({"worker_max_tasks_per_child": 100}, {}, lambda pool: "served" if _kin(pool) == "prefork" else "nothing"),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("asked", ASKED)
def test_a_wish_is_served_refused_or_said_to_come_to_nothing(asked: str, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    conf, options, outcome = ASKED[asked]
    app = Celery(set_as_current=False)
    app.conf.update(conf)
    if outcome(POOLS[pool]) == "refused":
        with pytest.raises(SystemExit):
            check(POOLS[pool], app.conf, options)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"is not supported on pool {pool}: " in line
    else:
        lines = check(POOLS[pool], app.conf, options)
        assert len(lines) == (1 if outcome(POOLS[pool]) == "nothing" else 0)
        assert all(f"has no effect on pool {pool}: " in line for line in lines)
