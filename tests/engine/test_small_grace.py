"""A worker with a short grace requeues tasks that it cannot finish, like one with a long grace. celery_kit/worker/grace.py"""

from pathlib import Path
from uuid import uuid4

import pytest

from celery_kit.pools.table import POOLS
from tests.engine.rig import producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until


@pytest.mark.parametrize(("pool", "grace"), [*((pool, "2s") for pool in POOLS), ("prefork", "10s")])
def test_a_stop_within_any_grace_hands_back_what_still_runs(server: Server, tmp_path: Path, pool: str, grace: str) -> None:
    """Every allowed grace leaves time to requeue. No task is killed by the signal after it."""
    queue = uuid4().hex[:8]
    (held,) = send(producer(server), queue, 1, "engine.step", (300, str(tmp_path)), time_limit=600)
    with worker(server, pool, "fast", queue, TASK_TIME_LIMIT="1", STOP_GRACE_PERIOD=grace) as one:
        until("it runs", (tmp_path / held).exists)
        assert one.stop() == 0, one.log.read_text()
        assert "Traceback" not in one.log.read_text()
    until("the task waits for another worker", lambda: server.broker.llen(queue) == 1 and not server.broker.hlen("unacked"))
