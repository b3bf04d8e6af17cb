"""A primary that is lost: another takes its place, and neither a task nor a worker is lost with it."""

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from redis import Redis

from celery_kit.base.choices import ENGINES
from celery_kit.pools.table import POOLS
from tests.engine.rig import Worker
from tests.harness.kit import kit
from tests.harness.sentinels import Sentinels
from tests.harness.waiting import until

TASK = "celery-task-meta-"


@pytest.fixture(scope="module")
def sentinels() -> Iterator[Sentinels]:
    with Sentinels() as sentinels:
        yield sentinels


def done(sentinels: Sentinels, ids: list[str]) -> int:
    found: Any = Redis(port=sentinels.primary(), db=1).mget([f"{TASK}{one}" for one in ids])
    return sum(value is not None for value in found)


def send(app: Celery, queue: str, count: int, **options: Any) -> list[str]:
    return [app.send_task("engine.add", (1, 2), queue=queue, **options).id for _ in range(count)]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_follows_the_primary(sentinels: Sentinels, pool: str, engine: str) -> None:
    """Whether it was killed or is frozen; what was accepted before and meanwhile is done, and the former one is a replica."""
    queue, app = uuid4().hex[:8], kit({**sentinels.urls, "ENGINE": engine})
    one = Worker(sentinels, pool, engine, queue).ready()  # type: ignore[arg-type]  # has what it uses
    try:
        for lose, find in ((sentinels.kill, sentinels.start), (sentinels.freeze, sentinels.thaw)):
            ids = send(app, queue, 20)
            lose(former := sentinels.primary())
            ids += send(app, queue, 20)
            ids += send(app, queue, 1, countdown=1)
            until("all are done", lambda ids=ids: done(sentinels, ids) == len(ids) or not one.alive)  # type: ignore[misc]
            assert one.alive, one.said
            find(former)
            until("it is a replica", lambda former=former: sentinels.info(former)["role"] == "slave")  # type: ignore[misc]
            until("it has it all", lambda former=former: sentinels.info(former)["master_link_status"] == "up")  # type: ignore[misc]
        assert one.stop() == 0
    finally:
        one.kill()
