"""On Redis a dead worker's messages are back within seconds, and a living worker keeps its own.

celery_kit/brokers/redis/leases.py
"""

import os
import signal
import time
from functools import partial
from uuid import uuid4

import pytest
from kombu.utils.encoding import bytes_to_str

from celery_kit.base.choices import ENGINES
from celery_kit.pools.table import POOLS
from tests.engine.rig import Worker, done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import CONCURRENCY, PLAIN_CELERY

pools = pytest.mark.parametrize("pool", POOLS)


@pytest.fixture
def queue() -> str:
    return uuid4().hex[:8]


def runs(server: Server, queue: str, task_id: str) -> list[str]:
    """The workers that have run a task `engine.where`, in their order."""
    return [bytes_to_str(name) for name in server.results.lrange(f"{queue}-{task_id}", 0, -1)]


def freeze(one: Worker) -> None:
    os.killpg(one.process.pid, signal.SIGSTOP)


def thaw(one: Worker) -> None:
    os.killpg(one.process.pid, signal.SIGCONT)


def left(server: Server) -> list[bytes]:
    """The keys of messages that somebody holds."""
    return [key for key in server.broker.scan_iter("unacked*") if not key.endswith((b":quiet", b".leases"))]


@pools
def test_the_task_of_a_killed_worker_runs_again_within_seconds(server: Server, queue: str, pool: str) -> None:
    """With the default settings, where the visibility timeout is an hour."""
    (held,) = send(producer(server), queue, 1, "engine.where", (queue, 20))
    with worker(server, pool, "fast", queue) as one:
        until("it runs", partial(runs, server, queue, held))
        with worker(server, pool, "fast", queue):
            one.kill()
            killed = time.monotonic()
            until("it has run again", partial(done, server, [held]), 60)
            print(f"{pool}: it has run again {time.monotonic() - killed:.1f} s after SIGKILL")
            until("nothing is held", lambda: not left(server))
    first, second = runs(server, queue, held)
    assert first != second


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_begins_by_giving_back_what_its_predecessor_held(server: Server, queue: str, engine: str) -> None:
    """Known by its node name. Nobody would wait for the lease, which lasts an hour here."""
    name = ("-n", f"{queue}@test")
    (held,) = send(producer(server), queue, 1, "engine.where", (queue, 600))
    with worker(server, "threads", engine, queue, *name, WORKER_LEASE="3000") as one:
        until("it runs", partial(runs, server, queue, held))
        one.kill()
    with worker(server, "threads", engine, queue, *name, WORKER_LEASE="3000"):
        until("it has run again", partial(done, server, [held]))


@pools
@pytest.mark.parametrize("engine", ENGINES)
def test_a_living_worker_keeps_a_message_longer_than_the_visibility_timeout(
    server: Server, queue: str, pool: str, engine: str
) -> None:
    """Beside it are a worker of plain Celery, which restores what is older than that, and another one of the kit."""
    environ = {"VISIBILITY": "5", "WORKER_LEASE": "3", "THREAD_SAFE": ""}
    (long,) = send(producer(server), queue, 1, "engine.where", (queue, 15))
    with worker(server, pool, engine, queue, **environ):
        until("it runs", partial(runs, server, queue, long))
        with worker(server, "solo", PLAIN_CELERY, queue, **environ), worker(server, "threads", engine, queue, **environ):
            until("it is done", partial(done, server, [long]))
            until("nothing is held", lambda: not left(server))
    assert len(runs(server, queue, long)) == 1


@pools
@pytest.mark.parametrize("engine", ENGINES)
def test_a_thawed_worker_begins_nothing_that_others_got(server: Server, queue: str, pool: str, engine: str) -> None:
    """What it had begun, as many tasks as it runs at once, runs twice. It goes on with other messages.

    On ENGINE=plain the server may have answered its BRPOP when it froze: it gets that message once it is thawed.
    """
    size, popped = 1 if pool == "solo" else 2, int(engine == "plain")
    ids = send(producer(server), queue, 4 * size, "engine.where", (queue, 1))
    with worker(server, pool, engine, queue, "-c", str(size), WORKER_LEASE="3", PREFETCH="4") as one:
        until("it has begun", lambda: any(runs(server, queue, task_id) for task_id in ids))
        freeze(one)
        with worker(server, pool, engine, queue, WORKER_LEASE="3") as other:
            until("the other worker has done all", lambda: done(server, ids) >= len(ids) - popped, 60)
            assert other.stop() == 0
        thaw(one)
        more = send(producer(server), queue, CONCURRENCY[pool], "engine.where", (queue, 0))
        until("it works again", lambda: done(server, [*ids, *more]) == len([*ids, *more]), 90)
        until("nothing is held", lambda: not left(server))
    ran = [len(runs(server, queue, task_id)) for task_id in ids]
    assert max(ran) <= 2 and ran.count(2) <= size, ran
    assert all(len(runs(server, queue, task_id)) == 1 for task_id in more)


@pools
def test_a_server_that_refuses_to_write_for_a_while_loses_no_task(server: Server, queue: str, pool: str) -> None:
    """As with a full disk, or while its replicas are away. What a worker had only prefetched is requeued once it can be.

    Its results are refused too, and the tasks fail that write to it themselves.
    """
    ids = send(producer(server), queue, 60, "engine.where", (queue, 0.2))
    with worker(server, pool, "fast", queue, PREFETCH="8"):
        until("it has begun", lambda: done(server, ids))
        server.broker.config_set("min-replicas-to-write", 1)
        time.sleep(6)  # how long the fault lasts: each worker fails to renew its lease once, which it does every five seconds
        server.broker.config_set("min-replicas-to-write", 0)
        until("all are done", lambda: done(server, ids) == len(ids), 90)
        until("nothing is held", lambda: not left(server), 90)


@pools
@pytest.mark.parametrize("engine", ENGINES)
def test_a_running_task_outlives_its_connection(server: Server, queue: str, pool: str, engine: str) -> None:
    """Its message stays the worker's, and what the worker had only prefetched is run too, each once."""
    ids = send(producer(server), queue, 4, "engine.where", (queue, 2))
    with worker(server, pool, engine, queue, "-c", "1", WORKER_LEASE="3000", PREFETCH="4"):
        until("it has begun", lambda: any(runs(server, queue, task_id) for task_id in ids))
        server.broker.client_kill_filter(skipme=True, _type="normal")
        until("all are done", lambda: done(server, ids) == len(ids), 90)
        until("nothing is held", lambda: not left(server), 90)
    assert [len(runs(server, queue, task_id)) for task_id in ids] == [1] * len(ids)
