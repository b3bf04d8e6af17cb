"""What a worker of each pool does on each engine, over Redis. celery_kit/brokers/redis/transport.py,
celery_kit/worker/green_loop.py
"""

import json
from base64 import b64decode
from collections import Counter
from functools import partial
from typing import cast
from uuid import uuid4

import pytest
from redis.client import PubSub

from celery_kit.base.choices import ENGINES
from celery_kit.brokers.redis.delayed import DELAYED
from celery_kit.pools.table import POOLS
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import CONCURRENCY

GREEN = [name for name, pool in POOLS.items() if pool.sockets_patched]


@pytest.fixture
def queue() -> str:
    return uuid4().hex[:8]


def has_done(server: Server, ids: list[str], count: int) -> bool:
    return done(server, ids) >= count


def left(server: Server, queue: str) -> int:
    """The number of waiting and of unacknowledged messages."""
    return int(server.broker.llen(queue) + server.broker.hlen("unacked"))


@pytest.mark.parametrize("pool", POOLS)
def test_a_killed_worker_loses_nothing(server: Server, queue: str, pool: str) -> None:
    """It is killed repeatedly during quick tasks. For figures, and plain Celery's, see `make test-crash`."""
    ids = send(producer(server), queue, 400)
    for goal in (1, 100, 200):
        with worker(server, pool, "fast", queue, VISIBILITY="2") as one:
            until(f"{goal} tasks are done", partial(has_done, server, ids, goal))
            one.kill()
    with worker(server, pool, "fast", queue, VISIBILITY="2") as one:
        until("every task is done", lambda: done(server, ids) == len(ids), 120)
        until("nothing is left", lambda: not left(server, queue))
        assert one.stop() == 0


@pytest.mark.parametrize("pool", POOLS)
def test_a_round_trip_is_for_many_tasks(server: Server, queue: str, pool: str) -> None:
    """Plain Celery needs a BRPOP, a record and an acknowledgement for each task."""
    ids = send(producer(server), queue, 1000)
    before = server.broker.info("commandstats")
    with worker(server, pool, "fast", queue):
        until("every task is done", lambda: done(server, ids) == len(ids), 120)
        until("nothing is left", lambda: not left(server, queue))
    after = server.broker.info("commandstats")
    trips = {
        name: after[f"cmdstat_{name}"]["calls"] - before.get(f"cmdstat_{name}", {"calls": 0})["calls"]
        for name in ("evalsha", "brpop", "exec")
        if f"cmdstat_{name}" in after
    }
    assert trips["evalsha"] < 1000 and trips.get("brpop", 0) == 0, trips


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", GREEN)
def test_a_green_pool_takes_the_next_task_at_once(server: Server, queue: str, pool: str, engine: str) -> None:
    """Plain Celery runs two tasks in two seconds here, because nothing wakes its loop when a slot is free."""
    ids = send(producer(server), queue, 200)
    with worker(server, pool, engine, queue, "-c", "2", PREFETCH="1"):
        until("every task is done", lambda: done(server, ids) == len(ids))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", GREEN)
def test_a_green_pool_restores_what_a_dead_worker_held(server: Server, queue: str, pool: str, engine: str) -> None:
    """Also while it is idle. Plain Celery checks only after a wait that brought nothing and was not for BRPOP."""
    (held,) = send(producer(server), queue, 1, "engine.wait", (1,))
    with worker(server, pool, engine, queue, VISIBILITY="2") as one:
        until("the task is out", lambda: server.broker.hlen("unacked"))
        one.kill()
    assert not done(server, [held])
    with worker(server, pool, engine, queue, VISIBILITY="2"):
        until("another worker has done it", lambda: done(server, [held]), 2 + 10 + 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_events_of_tasks_go_in_groups(server: Server, queue: str, pool: str, engine: str) -> None:
    """None is lost, at a stop neither. Plain Celery publishes each alone on green pools, and a few at a time on the others."""
    ids = send(producer(server), queue, 300)
    with PubSub(server.broker.connection_pool, ignore_subscribe_messages=True) as events:
        events.psubscribe("*celeryev/task*")
        events.get_message(timeout=5)  # the server's answer
        with worker(server, pool, engine, queue, "-E") as one:
            until("every task is done", lambda: done(server, ids) == len(ids))
            until("nothing is left", lambda: not left(server, queue))
            assert one.stop() == 0
        said = list(iter(partial(events.get_message, timeout=1), None))
    bodies = [json.loads(b64decode(json.loads(one["data"])["body"])) for one in said]
    kinds = Counter(event["type"] for body in bodies for event in (body if isinstance(body, list) else [body]))
    assert kinds == dict.fromkeys(("task-received", "task-started", "task-succeeded"), len(ids))
    assert len(bodies) < len(ids)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_that_stops_hands_back_what_it_has_not_begun(server: Server, queue: str, pool: str, engine: str) -> None:
    count = 4 * CONCURRENCY[pool]
    ids = send(producer(server), queue, count, "engine.wait", (1,))
    with worker(server, pool, engine, queue) as one:
        until("it has begun", lambda: server.broker.hlen("unacked"))
        assert one.stop() == 0
    assert server.broker.hlen("unacked") == 0
    assert server.broker.llen(queue) + done(server, ids) == count


@pytest.mark.parametrize("pool", POOLS)
def test_tasks_with_an_eta_do_not_keep_others_waiting(server: Server, queue: str, pool: str) -> None:
    later = send(producer(server), queue, 30, countdown=600)
    ids = send(producer(server), queue, 30)
    with worker(server, pool, "fast", queue) as one:
        until("the others are done", lambda: done(server, ids) == len(ids))
        assert one.stop() == 0
    found = cast("list[bytes]", server.broker.zrange(DELAYED, 0, -1))
    waiting = [one for one in found if one.startswith(f"{queue}\n".encode())]
    assert not done(server, later) and server.broker.llen(queue) + len(waiting) == len(later)
    server.broker.zrem(DELAYED, *waiting)
