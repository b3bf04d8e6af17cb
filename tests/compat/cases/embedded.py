"""A worker in the client's process, as in users' tests (celery.contrib.testing)."""

import os
from pathlib import Path
from typing import Any

from celery.contrib.testing import tasks  # noqa: F401  # celery.ping, which checks that the worker works
from celery.contrib.testing.worker import start_worker

from tests.compat.cases.basics import add
from tests.compat.side import app


def gives(pool: str) -> list[Any]:
    """The results of tasks in two such workers, one after the other."""
    given = []
    for _ in range(2):
        with start_worker(app, pool=pool, concurrency=2, shutdown_timeout=20.0):
            given.append([one.get(timeout=20) for one in [add.delay(n, 1) for n in range(20)]])
    return given


def by_fixture(pool: str) -> int:
    """The exit code of pytest for the test in ../by_fixture.py."""
    import pytest  # not in every client and worker: it takes as long as all else that they import

    test = Path(__file__).parents[1] / "by_fixture.py"
    return int(pytest.main(["-q", "-p", "celery.contrib.pytest", "-p", "no:cacheprovider", "-c", os.devnull, str(test)]))
