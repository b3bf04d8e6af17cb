"""A plugin of pytest for Celery's own integration suite: `-p tests.upstream.kit_app`.

The suite gets its apps from celery.contrib.testing. If ENGINE is set, the kit is installed in each of them, as users install
it in theirs: by `celery_kit.install(app)`, once Celery has made the app. The suite's settings win over the kit's. Its worker
runs in the tests' own process, where Celery, and so the kit, does not use the fast trace; with SUITE_WORKER=process it has one
as users do, `celery -A tests.upstream.worker worker`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from celery.contrib.testing import app as testing
from celery.contrib.testing import tasks, worker

start_worker = worker.start_worker
#: What the suite sets that both processes have to agree on.
SHARED = ("broker_url", "result_backend", "result_extended", "task_create_missing_queues")
#: In seconds, the suite's own; but a test that has not ended by then hangs, and is not tried five times more.
TEST_SECONDS = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that fails is run again by `run.py`, alone; a whole module is not held up by those that hang on some side."""
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name not in ("flaky", "timeout")]
        item.add_marker(pytest.mark.timeout(TEST_SECONDS))
        if os.environ.get("AGAIN"):  # some do not ask for the worker that another has started
            item.fixturenames.insert(0, "celery_session_worker")  # type: ignore[attr-defined]


def start(app: Any, *args: Any, **options: Any) -> Any:
    wanted = os.environ.get("SUITE_WORKER") or "prefork"
    if options.get("pool") != "prefork":  # the suite's session has this one; what a test starts itself stays as it is
        return start_worker(app, *args, **options)
    if wanted == "process":
        return in_a_process(app)
    return start_worker(app, *args, **{**options, "pool": wanted})


@contextmanager
def in_a_process(app: Any) -> Iterator[Any]:
    """A worker of `app` in a process of its own, by the name that the suite looks for."""
    settings = json.dumps({name: app.conf[name] for name in SHARED})
    argv = [sys.executable, "-m", "celery", "-A", "tests.upstream.worker", "worker", "-P", "prefork", "-c", "2", "-l", "INFO"]
    process = subprocess.Popen([*argv, "-n", f"gen{os.getpid()}@%h"], env={**os.environ, "SUITE_SETTINGS": settings})
    try:
        assert app.tasks[tasks.ping.name].delay().get(timeout=60) == "pong"
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


worker.start_worker = start

if os.environ.get("ENGINE"):
    from celery_kit import install

    make = testing.TestApp

    def installed(*args: Any, **options: Any) -> Any:
        app = make(*args, **options)
        install(app)
        return app

    vars(testing)["TestApp"] = installed
