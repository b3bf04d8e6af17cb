"""Tasks with an ETA outlive workers and a restart of the Redis server. celery_kit/brokers/redis/delayed.py"""

import os
import time
from collections import Counter
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import cast
from uuid import uuid4

import pytest

from celery_kit import Kit
from celery_kit.brokers.redis.delayed import DELAYED, MOVERS
from celery_kit.pools.table import POOLS
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import Sender
from tests.engine.rig import Worker, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY

#: With TEST_DELAYED=10000, that many.
TASKS = int(os.environ.get("TEST_DELAYED") or 1_000)
#: The tasks are due in so many groups.
GROUPS = 100
#: Seconds from sending them until the first group is due, for all that happens while they wait; and between two groups.
WAIT, APART = 60, TASKS / 8_000
#: Seconds by which a task may be early: a worker's timer and its clock are two (tests/integration/test_time.py).
EARLY = 0.05


@pytest.fixture(autouse=True)
def empty(server: Server) -> None:
    server.broker.flushdb()


class Runs:
    """What the tasks `engine.stamp` of a queue have noted."""

    def __init__(self, server: Server, queue: str) -> None:
        noted = [str(one, "ascii").split() for one in cast("list[bytes]", server.results.lrange(f"{queue}-runs", 0, -1))]
        self.times = Counter(task_id for task_id, _, _ in noted)
        self.late = [float(at) - float(due) for _, due, at in noted]

    @property
    def again(self) -> int:
        """How many tasks ran more than once."""
        return sum(number > 1 for number in self.times.values())

    def __str__(self) -> str:
        late = f"median {median(self.late):.3f} s, at most {max(self.late):.3f} s"
        return f"{len(self.times)} tasks, {self.again} again, late: {late}"


def kit(server: Server) -> tuple[Kit, object]:
    app = Kit("delays", set_as_current=False)
    app.conf.update(broker_url=server.urls["CELERY_BROKER_URL"], result_backend=server.urls["CELERY_RESULT_BACKEND"])

    @app.task(name="engine.stamp")
    def stamp(due: float) -> None: ...

    return app, stamp


def send_groups(server: Server, queue: str, count: int, groups: int, wait: float, apart: float) -> list[str]:
    """Send `count` tasks that are due in groups, the first one in `wait` seconds. Returns their ids."""
    app, task = kit(server)
    start, ids = time.time() + wait, list[str]()
    with app.producer_or_acquire() as one:
        for group in range(groups):
            due = start + group * apart
            options = {"queue": queue, "eta": datetime.fromtimestamp(due, UTC)}
            ids += Sender(app, task, options, one).send([Call((due,))] * (count // groups))  # type: ignore[arg-type]
    return ids


@pytest.mark.timeout(600)
@pytest.mark.parametrize("pool", POOLS)
def test_delayed_tasks_outlive_workers_and_a_restart_of_the_broker(server: Server, pool: str) -> None:
    """Each runs once, and none early. Plain Celery's producer sends some of them, which a worker takes and does not hold."""
    queue = uuid4().hex[:8]
    server.broker.config_set("appendfsync", "everysec")  # as in deploy/brokers/redis/redis.conf
    with ExitStack() as stack:
        one, other = (stack.enter_context(worker(server, pool, "fast", queue)) for _ in range(2))
        until("a worker has left its sign", lambda: server.broker.exists(MOVERS))
        started = time.monotonic()
        ids = send_groups(server, queue, TASKS, GROUPS, WAIT, APART)
        plain, due = producer(server), time.time() + WAIT
        for _ in range(100):
            ids += send(plain, queue, 1, "engine.stamp", (due,), eta=datetime.fromtimestamp(due, UTC))
        assert time.monotonic() - started < WAIT, "this machine is too slow for this test"
        until("all wait", lambda: (server.broker.zcard(DELAYED), server.broker.hlen("unacked")) == (len(ids), 0), 30)
        one.kill()
        assert other.stop() == 0
        server.stop()
        server.start()
        assert server.broker.zcard(DELAYED) == len(ids)
        three = stack.enter_context(worker(server, pool, "fast", queue))
        server.stop()
        server.start()
        stack.enter_context(worker(server, pool, "fast", queue))
        assert time.monotonic() - started < WAIT, "this machine is too slow for this test"
        until("all have run", lambda: server.results.llen(f"{queue}-runs") >= len(ids), WAIT + GROUPS * APART + 120)
        until("nothing is left", lambda: not server.broker.hlen("unacked") and not server.broker.zcard(DELAYED))
        assert three.alive
        runs = Runs(server, queue)
        print(f"\n{pool}: {runs}")
        assert runs.times == Counter(ids)
        assert min(runs.late) > -EARLY


@pytest.mark.parametrize("pool", POOLS)
def test_workers_that_die_while_tasks_fall_due_lose_none(server: Server, pool: str) -> None:
    """What they have taken runs again, and that alone."""
    queue = uuid4().hex[:8]
    with ExitStack() as stack:

        def start() -> Worker:
            return stack.enter_context(worker(server, pool, "fast", queue, VISIBILITY="3"))

        workers = [start(), start()]
        ids = send_groups(server, queue, 1_000, 50, 3, 0.5)
        for number in (1, 2, 3):
            until("some have run", lambda least=200 * number: server.results.llen(f"{queue}-runs") > least)  # type: ignore[misc]
            workers.pop(0).kill()
            workers.append(start())
        until("all have run", lambda: len(Runs(server, queue).times) == len(ids), 120)
        until("nothing is left", lambda: not server.broker.hlen("unacked"))
        runs = Runs(server, queue)
        print(f"\n{pool}: {runs}")
        assert set(runs.times) == set(ids) and min(runs.late) > -EARLY


def test_a_plain_worker_gets_the_tasks_of_its_queue(server: Server) -> None:
    """A worker of the kit moves what is due to every queue, its own or not, and a plain worker on the same queue shares it."""
    own, others = uuid4().hex[:8], uuid4().hex[:8]
    with (
        worker(server, "threads", "fast", own),
        worker(server, "threads", PLAIN_CELERY, others),
        worker(server, "threads", PLAIN_CELERY, own),
    ):
        ids = {queue: send_groups(server, queue, 100, 10, 3, 0.3) for queue in (own, others)}
        assert server.broker.zcard(DELAYED)
        for queue in ids:
            until("all have run", lambda queue=queue: server.results.llen(f"{queue}-runs") >= 100)  # type: ignore[misc]
            runs = Runs(server, queue)
            assert runs.times == Counter(ids[queue]) and min(runs.late) > -EARLY


def test_a_retry_waits_on_the_server(server: Server) -> None:
    """Its worker may die meanwhile, and its task is free for others."""
    queue = uuid4().hex[:8]
    with worker(server, "threads", "fast", queue) as one:
        (task,) = send(producer(server), queue, 1, "engine.again", (8,))
        until("it waits", lambda: server.broker.zcard(DELAYED) == 1 and not server.broker.hlen("unacked"))
        one.kill()
    with worker(server, "threads", "fast", queue):
        until("its second try is done", lambda: server.results.get(f"{queue}-{task}") == b"1")


def test_a_revoked_task_never_runs(server: Server, tmp_path: Path) -> None:
    """Workers know what is revoked, as on every broker: one that restarts knows it by Celery's --statedb."""
    queue, state = uuid4().hex[:8], ("--statedb", str(tmp_path / "state"))
    app, _ = kit(server)
    with worker(server, "threads", "fast", queue, *state) as one:
        ids = send_groups(server, queue, 2, 1, 30, 0)
        app.control.revoke(ids[0])
        until("it is known", lambda: f"flagged as revoked: {ids[0]}" in one.said)
        assert one.stop() == 0 and server.broker.zcard(DELAYED) == 2
    with worker(server, "threads", "fast", queue, *state):
        until("the other one has run", lambda: server.results.llen(f"{queue}-runs") == 1)
        until("nothing is left", lambda: not server.broker.zcard(DELAYED) and not server.broker.hlen("unacked"))
        assert Runs(server, queue).times == {ids[1]: 1}
