"""What `celery worker` accepts and a pool cannot do is refused, or said, in one line."""

from typing import Any

import pytest
from celery import Celery

from celery_kit.pools.table import POOLS, check

#: What is asked for, and what becomes of it: by pool "refused", "nothing" or "served".
ASKED: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, str]]] = {
    "autoscale": ({}, {"autoscale": "4,1"}, {"threads": "refused", "solo": "nothing"}),
    "beat": ({}, {"beat": True}, {"gevent": "refused", "eventlet": "refused"}),
    "recycling": (
        {"worker_max_tasks_per_child": 100},
        {},
        dict.fromkeys(("solo", "threads", "gevent", "eventlet"), "nothing"),
    ),
}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("asked", ASKED)
def test_a_wish_is_served_refused_or_said_to_come_to_nothing(asked: str, pool: str, capsys: pytest.CaptureFixture[str]) -> None:
    conf, options, outcomes = ASKED[asked]
    app = Celery(set_as_current=False)
    app.conf.update(conf)
    if outcomes.get(pool) == "refused":
        with pytest.raises(SystemExit):
            check(POOLS[pool], app.conf, options)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"cannot be had on pool {pool}: " in line
    else:
        lines = check(POOLS[pool], app.conf, options)
        assert len(lines) == (1 if outcomes.get(pool) == "nothing" else 0)
        assert all(f"does nothing on pool {pool}: " in line for line in lines)
