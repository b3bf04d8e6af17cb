"""A worker within the client's process, as tests have it (celery.contrib.testing)."""

import os
from typing import Any

import pytest
from celery.contrib.testing import tasks  # noqa: F401  # celery.ping, by which it is seen to work
from celery.contrib.testing.worker import start_worker

from tests.compat.cases.basics import add
from tests.compat.side import app


def gives(pool: str) -> list[Any]:
    """What tasks give in two such workers, one after the other."""
    given = []
    for _ in range(2):
        with start_worker(app, pool=pool, concurrency=2, shutdown_timeout=20.0):
            given.append([one.get(timeout=20) for one in [add.delay(n, 1) for n in range(20)]])
    return given


def by_fixture(pool: str) -> int:
    """What pytest's exit code is for this file's test."""
    return int(pytest.main(["-q", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider", "-c", os.devnull, __file__]))


@pytest.fixture
def celery_app() -> Any:
    return app


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    return os.environ["POOL"]


def test_add(celery_worker: Any) -> None:
    assert [one.get(timeout=20) for one in [add.delay(n, 1) for n in range(20)]] == list(range(1, 21))
