"""A pause outlives workers and server, and a worker that nobody has told learns it. celery_kit/worker/pausing.py"""

from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from celery_kit.base.choices import ENGINES
from celery_kit.brokers.redis.pauses import KEY, RedisPauses
from celery_kit.observe.health import now
from celery_kit.pools.table import POOLS
from celery_kit.worker.pausing import EVERY
from tests.engine.rig import Worker, done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until

PAUSED, RESUMED = "is paused: it is not consumed", "is resumed"


@pytest.fixture
def queue() -> str:
    return uuid4().hex[:8]


def put(app: Celery, queue: str, paused: bool) -> None:
    """As `make pause` and `make resume`, but no worker is asked to look."""
    with app.connection_for_write() as connection:
        RedisPauses().put(connection, queue, paused)


def said(one: Worker, what: str) -> None:
    until(f"the worker says '{what}'", lambda: what in one.said, 60 + EVERY)


def answers(app: Celery) -> list[list[str]]:
    """The paused queues of each worker that answers, after it has looked again."""
    try:
        return [one["paused"] for found in app.control.broadcast("pauses", reply=True, limit=1) or () for one in found.values()]
    except OSError:  # the server is starting
        return []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_pause_outlives_workers_and_server(queue: str, pool: str, engine: str) -> None:
    with Server() as server:  # of its own, because it is restarted
        app = producer(server)
        put(app, queue, True)
        ids = send(app, queue, 3)
        with worker(server, pool, engine, queue) as one:
            said(one, PAUSED)
            server.stop()
            server.start()
            until("it knows it still", lambda: answers(app) == [[queue]], 60)
            assert one.stop() == 0
        with worker(server, pool, engine, queue) as one:
            said(one, PAUSED)
            assert (done(server, ids), server.broker.llen(queue)) == (0, 3)
            put(app, queue, False)
            said(one, RESUMED)  # it looks by itself
            until("all have run", lambda: done(server, ids) == 3)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_was_fetched_and_not_begun_waits_as_well(server: Server, queue: str, engine: str) -> None:
    """A worker that is quick has fetched many messages ahead. Only those that Celery has taken are run."""
    app, other = producer(server), f"{queue}.other"
    with worker(server, "threads", engine, f"{queue},{other}", "-c", "1") as one:
        ids = send(app, queue, 400, "engine.wait", (0.02,))
        until("it is at work", lambda: done(server, ids) >= 20)
        put(app, queue, True)
        app.control.broadcast("pauses", reply=True, limit=1)
        said(one, PAUSED)
        more = send(app, other, 3)
        until("its other queue is consumed", lambda: done(server, more) == 3)
        until("it holds nothing", lambda: not server.broker.hlen("unacked"))
        ran = done(server, ids)
        assert ran + server.broker.llen(queue) == 400 and ran < 400
        put(app, queue, False)
        app.control.broadcast("pauses", reply=True, limit=1)
        until("the rest has run", lambda: done(server, ids) == 400, 60)


def test_a_paused_worker_is_healthy(server: Server, queue: str, tmp_path: Path) -> None:
    """Messages wait, it has room for them and takes none: for longer than it may, were its queue not paused."""
    app, file, seconds = producer(server), tmp_path / "heartbeat", 5
    put(app, queue, True)
    send(app, queue, 3)
    with worker(server, "threads", "fast", queue, HEARTBEAT_FILE=str(file), HEARTBEAT_SECONDS=str(seconds)):
        until("it is healthy", file.exists)
        begun = now()

        def long_enough() -> bool:
            assert int(file.read_text().split()[1]) > 0
            return now() > begun + 3 * seconds

        until("it would count as stuck by now", long_enough, 60)


def test_what_cannot_be_read_as_a_set_pauses_nothing(queue: str) -> None:
    """A producer may write to any list: it could make one of this key. The worker says so, and works."""
    with Server() as server:
        server.broker.lpush(KEY, "no set")
        with worker(server, "threads", "fast", queue) as one:
            ids = send(producer(server), queue, 1)
            until("it has run", lambda: done(server, ids) == 1)
            assert "could not be asked which queues are paused" in one.said
