"""What a task costs the server, which no noise changes: the guard of what ENGINE=fast is for."""

from pathlib import Path
from uuid import uuid4

import pytest

from celery_kit.pools.table import POOLS
from tests.engine.calls import total
from tests.engine.conftest import server as server
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY

TASKS = 1_000
#: Requests a task that a worker stays below, with all that its start and end ask; plain Celery makes more than four. One that
#: takes nothing ahead (celery_kit/engine/prefetch.py) makes 0.36 on threads, and twice as many on solo and prefork.
MOST, PLAIN = 0.3, 4.0
#: Calls a task of the worker's sockets, at most.
CALLS = 1.0


def requests(server: Server, pool: str, engine: str, *options: str, **environ: str) -> float:
    """How often the server reads from a worker, for each task of a full queue: from its start to its end."""
    queue = uuid4().hex[:8]
    ids = send(producer(server), queue, TASKS)
    before = server.broker.info("stats")["total_reads_processed"]
    with worker(server, pool, engine, queue, *options, **environ) as one:
        # Its log tells: to ask the server would count.
        until("all are done", lambda: one.log.read_text().count(" succeeded in ") == TASKS, 120)
        assert one.stop() == 0
    asked = float(server.broker.info("stats")["total_reads_processed"] - before)
    assert done(server, ids) == TASKS
    return asked / TASKS


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_asks_for_many_tasks_at_once(server: Server, pool: str, tmp_path: Path) -> None:
    """And says of many at once that they are done. What it asks is written at once, and what comes is read at once."""
    path = tmp_path / "calls"
    assert requests(server, pool, "fast", "-I", "tests.engine.calls", CALLS=str(path)) < MOST
    assert total(path) / TASKS < CALLS


def test_what_plain_celery_asks(server: Server) -> None:
    """If this fails, the measure is wrong, or Celery has become better: the bound above is to be looked at."""
    assert requests(server, "threads", PLAIN_CELERY) > PLAIN
