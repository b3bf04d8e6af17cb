"""The kit in an interpreter that lacks what Windows lacks (tests/engine/windows.py). docs/pools.md says what was
never run on Windows.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celery_kit.base.choices import ENGINES
from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.engine.rig import Worker, done, producer, send
from tests.harness.servers import Server
from tests.harness.waiting import until

WINDOWS = (sys.executable, "-m", "tests.engine.windows")
POOLS_THERE = ("solo", "threads")


def run(*argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "BROKER": "redis", "LOG_FORMAT": "text", **environ}
    return subprocess.run([*WINDOWS, *argv], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def start(server: Server, pool: str, engine: str, queue: str, *options: str, **environ: str) -> Any:
    """Start a worker in such an interpreter. :class:`Worker` stops it."""
    one = Worker.__new__(Worker)
    one.log = Path(server.folder.name) / f"{queue}.log"
    argv = [
        *WINDOWS,
        "celery",
        "-A",
        "tests.engine.probe",
        "worker",
        "-P",
        pool,
        "-Q",
        queue,
        "-l",
        "INFO",
        "-c",
        "2",
        *options,
    ]
    with one.log.open("w") as log:
        one.process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env={**os.environ, **server.urls, "ENGINE": engine, "QUEUE": queue, **environ},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return one.ready()


def test_every_module_can_be_imported_without_what_is_posix_alone() -> None:
    """A module, function, signal or constant of POSIX is needed only when a feature that depends on it is used.

    eventlet is left out: it has code of its own for Windows, with constants that are only there.
    """
    seen = run("tests.engine.windows_imports", "celery_kit.pools.eventlet")
    assert (seen.returncode, seen.stdout) == (0, ""), seen.stdout + seen.stderr


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS_THERE)
def test_a_worker_without_what_is_posix_alone_does_tasks(server: Server, pool: str, engine: str) -> None:
    """A producer sends; a worker runs tasks, stores results, applies time limits, waits for an ETA, and stops."""
    queue = uuid4().hex[:8]
    worker = start(server, pool, engine, queue)
    try:
        ids = send(producer(server), queue, 50)
        until("every task is done", lambda: done(server, ids) == len(ids))
        (later,) = send(producer(server), queue, 1, countdown=0.5)
        until("one with an ETA, too", lambda: done(server, [later]) == 1)
        code = "from tests.engine.probe import add; assert add.delay(1, 2).get(timeout=30) == 3; print('3')"
        asked = run("tests.engine.windows_code", code, **server.urls, ENGINE=engine, QUEUE=queue)
        assert asked.stdout == "3\n", asked.stderr
        (late,) = send(producer(server), queue, 1, "engine.step", (60, server.folder.name), time_limit=1)
        until(
            "one that is late is ended", lambda: b"TimeLimitExceeded" in (server.results.get(f"celery-task-meta-{late}") or b"")
        )
        until("nothing is held", lambda: not server.broker.hlen("unacked") and not server.broker.llen(queue))
        os.kill(worker.process.pid, signal.SIGINT)  # Ctrl-C, which exists on Windows
        worker.process.wait(30)
        assert "Traceback" not in worker.log.read_text().replace("TimeLimitExceeded", ""), worker.log.read_text()
    finally:
        worker.kill()


@pytest.mark.parametrize("options", [("-P", "prefork"), ()])
def test_prefork_is_refused_by_the_words_that_its_users_look_for(options: tuple[str, ...]) -> None:
    """Plain Celery starts, but each task fails."""
    refused = run("celery", "-A", "app", "worker", *options)
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2
    assert "pool prefork does not run on Windows" in line
    assert "not enough values to unpack (expected 3, got 0)" in line
    assert all(name in line for name, pool in POOLS.items() if not pool.has_children)


@pytest.mark.parametrize(
    ("argv", "environ", "said"),
    [
        (
            ("celery_kit.operate.stacks.embedded", "solo", "redis", "1", "up"),
            {},
            "the embedded stack needs file locks of Linux or macOS",
        ),
        (("celery_kit.operate.look.send", "mail.send_email", "[]"), {"SPOOL": "spool"}, "SPOOL cannot be had on Windows"),
    ],
)
def test_what_stands_on_posix_says_so_in_one_line(argv: tuple[str, ...], environ: dict[str, str], said: str) -> None:
    refused = run(*argv, **environ)
    (line,) = refused.stderr.splitlines()
    assert refused.returncode == 2 and said in line
