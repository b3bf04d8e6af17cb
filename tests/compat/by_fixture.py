"""A user's test with Celery's fixtures, celery_app and celery_worker: cases/embedded.py runs it."""

import os
from typing import Any

import pytest

from tests.compat.cases.basics import add
from tests.compat.side import app


@pytest.fixture
def celery_app() -> Any:
    return app


@pytest.fixture(scope="session")
def celery_worker_pool() -> str:
    return os.environ["POOL"]


def test_add(celery_worker: Any) -> None:
    assert [one.get(timeout=20) for one in [add.delay(n, 1) for n in range(20)]] == list(range(1, 21))
