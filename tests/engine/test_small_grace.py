"""A worker with a short grace requeues tasks that it cannot finish, like one with a long grace. celery_kit/worker/grace.py"""

from pathlib import Path
from typing import Any
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
    until("the task waits for another worker", lambda: waits(server, queue, held))


@pytest.mark.parametrize("pool", [pool for pool, row in POOLS.items() if not row.has_children and row.answers_while_busy])
def test_a_cold_shutdown_just_as_the_warm_one_begins_hands_back(server: Server, tmp_path: Path, pool: str) -> None:
    """The worker has left its loop, and waits for no task: fix cold_shutdown."""
    queue = uuid4().hex[:8]
    (held,) = send(producer(server), queue, 1, "engine.step", (300, str(tmp_path)), time_limit=600)
    with worker(server, pool, "fast", queue, "-I", "tests.engine.quit_as_it_stops") as one:
        until("it runs", (tmp_path / held).exists)
        assert one.stop() == 0, one.log.read_text()
        assert "Traceback" not in one.log.read_text()
    until("the task waits for another worker", lambda: waits(server, queue, held))


def waits(server: Server, queue: str, held: str) -> bool:
    """Whether the task's message is in its queue again, and no worker's."""
    unacked: Any = server.broker.hvals("unacked")  # also those of tests that failed
    return server.broker.llen(queue) == 1 and not any(held.encode() in one for one in unacked)
