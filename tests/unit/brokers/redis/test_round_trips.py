"""How many round trips a task takes. Unlike times, the number has no noise: it guards the gain of ENGINE=fast."""

import operator
from pathlib import Path
from uuid import uuid4

import pytest

from celery_kit.pools.table import POOLS
from testbed import deployed
from tests.engine.calls import total
from tests.engine.conftest import server as server
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY

TASKS = 1_000
#: Requests a task that a worker stays below, with all that its start and end ask; plain Celery makes more than four. One that
#: takes nothing ahead (celery_kit/engine/prefetch.py) makes some 0.7 on solo and prefork. The slower the machine, the fewer
#: tasks end between two writes: 0.24 alone, up to 0.35 where other work runs.
MOST, PLAIN = 0.45, 4.0
#: Other work on the machine only adds to what a worker asks for: the least of so many runs counts.
TRIES = 3
#: A task's calls of the worker's sockets, at most (eventlet makes up to 1.9 on a busy machine); files opened or renamed for it;
#: writes to files and pipes, of which prefork's to and from its children are 5; bytes of its log. Its two lines are 820 bytes.
#: A heartbeat file and a log line that are written for each task would be 2 files and 3 writes.
CALLS, FILES, WRITES, LOGGED = 2.0, 0.5, {"prefork": 7.0}, 900


def cost(server: Server, pool: str, engine: str, *options: str, **environ: str) -> tuple[float, float]:
    """How often the server reads from a worker, and how many bytes that logs, for each task of a full queue."""
    queue = uuid4().hex[:8]
    ids = send(producer(server), queue, TASKS)
    before = server.broker.info("stats")["total_reads_processed"]
    with worker(server, pool, engine, queue, *options, **environ) as one:
        # Its log tells: to ask the server would count.
        until("all are done", lambda: one.log.read_text().count(" succeeded in ") == TASKS, 120)
        assert one.stop() == 0
        logged = one.log.stat().st_size
    asked = float(server.broker.info("stats")["total_reads_processed"] - before)
    assert done(server, ids) == TASKS
    return asked / TASKS, logged / TASKS


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_fetches_many_tasks_at_once(server: Server, pool: str, tmp_path: Path) -> None:
    """It also acknowledges many at once. A request is one write, and an answer one read.

    Its files cost as little: it has the environment of a container, with its heartbeat file and its log.
    """
    environ = {name: value for name, value in deployed.environment().items() if not name.startswith("CELERY_")}
    tries: list[tuple[float, ...]] = []
    least: tuple[float, ...] = ()
    most = (MOST, LOGGED, CALLS, FILES, WRITES.get(pool, 1.0))
    while len(tries) < TRIES and not (least and all(map(operator.lt, least, most))):
        path = tmp_path / f"calls-{len(tries)}"
        environ |= {"CALLS": str(path), "DATA_DIR": str(tmp_path), "HEARTBEAT_FILE": str(tmp_path / "heartbeat")}
        asked, logged = cost(server, pool, "fast", "-I", "tests.engine.calls", **environ)
        tries.append((asked, logged, *(total(path, which) / TASKS for which in range(3))))
        least = tuple(map(min, zip(*tries, strict=True)))
    assert all(map(operator.lt, least, most)), f"requests, bytes of log, calls, files, writes: {tries}, at most {most}"


def test_plain_celery_needs_more_round_trips(server: Server) -> None:
    """If this fails, the measurement is wrong, or Celery has become better: check the limit above."""
    assert cost(server, "threads", PLAIN_CELERY)[0] > PLAIN
