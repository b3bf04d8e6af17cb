"""A broker that restarts does not end the worker. fix redis_restart"""

from threading import Event, Thread
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.worker.heartbeat import Heart
from kombu.utils.imports import symbol_by_name

from celery_kit.base.choices import ENGINES
from celery_kit.brokers.redis.delayed import DELAYED
from celery_kit.pools.table import POOLS
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_outlives_a_restart_of_the_broker(server: Server, pool: str, engine: str) -> None:
    """A running task and one that waits for its ETA are redelivered afterwards."""
    queue = uuid4().hex[:8]
    app = producer(server)
    with worker(server, pool, engine, queue, VISIBILITY="4") as one:
        held = send(app, queue, 1, countdown=5) + send(app, queue, 1, "engine.wait", (3,))
        until("both are out", lambda: server.broker.hlen("unacked") + server.broker.zcard(DELAYED) == 2)
        server.stop()
        server.start()
        until("both are done", lambda: done(server, held) == 2 or one.process.poll() is not None, 90)
        assert one.process.poll() is None, f"the worker ended:\n{one.log.read_text()}"
        after = send(app, queue, 20)
        until("new ones are done", lambda: done(server, after) == 20)
        until("nothing is left", lambda: not server.broker.hlen("unacked") and not server.broker.llen(queue))
        assert one.stop() == 0


def test_celery_still_needs_the_fix(server: Server) -> None:
    """If this fails, the fix redis_restart may go."""
    queue = uuid4().hex[:8]
    app = producer(server)
    with worker(server, "prefork", PLAIN_CELERY, queue) as one:
        send(app, queue, 1, "engine.wait", (5,))
        until("it is out", lambda: server.broker.hlen("unacked"))
        server.stop()
        server.start()
        until("the worker has ended", lambda: one.process.poll() is not None)
        assert "has no attribute 'hostname'" in one.log.read_text()
    server.broker.delete("unacked", "unacked_index")


def says_that_it_lives(server: Server, events: Any) -> Event:
    """A worker's heartbeat is due while its broker is unavailable. Returns an event that is set if its loop goes on."""
    app = producer(server)
    dispatcher: Any = symbol_by_name(events)(app=app).Dispatcher(app.connection_for_write())
    heart: Any = Heart(None, dispatcher)
    heart._send("worker-online")
    server.stop()
    over = Event()

    def beat() -> None:
        heart._send("worker-heartbeat")
        over.set()

    Thread(target=beat, daemon=True).start()
    return over


def test_a_worker_does_not_wait_to_say_that_it_lives(server: Server) -> None:
    """Its loop goes on, and notices by itself that the broker is unavailable. fix events_in_the_loop"""
    over = says_that_it_lives(server, "celery_kit.fixes.event_loop:Events")
    try:
        assert over.wait(60)
    finally:
        server.start()


def test_celery_still_waits_to_say_that_it_lives(server: Server) -> None:
    """If this fails, that part of the fix events_in_the_loop may go."""
    over = says_that_it_lives(server, Celery.events_cls)
    try:
        assert not over.wait(10)
    finally:
        server.start()
    assert over.wait(60)
