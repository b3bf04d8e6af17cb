"""A worker on prefork that is stopped stores the results of its children. celery_kit/pools/prefork.py"""

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
