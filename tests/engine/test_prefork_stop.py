"""A worker on prefork that is stopped stores the results of its children. celery_kit/pools/prefork.py"""

from contextlib import suppress
from uuid import uuid4

import pytest

from celery_kit.base.choices import ENGINES
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY

TASKS, BEFORE = 300, 40
#: Number of stops within which plain Celery loses a result at least once.
MANY = 25


def done_again(server: Server, engine: str) -> int:
    """The number of done tasks that are in the queue again, after a worker was stopped while its children were busy."""
    queue = uuid4().hex[:8]
    ids = send(producer(server), queue, TASKS)
    with worker(server, "prefork", engine, queue) as one:
        until("some are done", lambda: done(server, ids) >= BEFORE)
        assert one.stop() == 0
    until("the rest is in the queue", lambda: not server.broker.hlen("unacked"))
    return server.broker.llen(queue) + done(server, ids) - TASKS


@pytest.mark.parametrize("engine", ENGINES)
def test_a_worker_that_ends_hands_in_what_its_children_have(server: Server, engine: str) -> None:
    assert [done_again(server, engine) for _ in range(4)] == [0] * 4


def test_celery_still_forgets_what_its_children_have(server: Server) -> None:
    """If this fails, `Pool.flush` of celery_kit/pools/prefork.py may go."""
    assert any(done_again(server, PLAIN_CELERY) for _ in range(MANY))


def goes_on(server: Server, engine: str) -> bool:
    """Whether a worker does more tasks after a child has kept the lock of their counter, as one does that is killed with it."""
    queue = uuid4().hex[:8]
    app = producer(server)
    with worker(server, "prefork", engine, queue):
        (held,) = send(app, queue, 1, "engine.keep_the_lock", ())
        until("it has the lock", lambda: done(server, [held]))
        more = send(app, queue, 10)
        with suppress(AssertionError):
            until("the others are done", lambda: done(server, more) == len(more), 5)
        return done(server, more) == len(more)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_lock_of_a_dead_child_is_not_waited_for(server: Server, engine: str) -> None:
    assert goes_on(server, engine)


def test_celery_still_waits_for_a_lock_of_a_dead_child(server: Server) -> None:
    """If this fails, `ReadCounter` of celery_kit/pools/prefork.py may go."""
    assert not goes_on(server, PLAIN_CELERY)
