"""`make doctor` finds each fault that is planted, for real, and none where nothing is wrong."""

import os
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from app.stack import ROOT
from tests.operator.conftest import Bench, Process
from tests.operator.test_vitals import vitals
from tests.wait import until


def doctor(bench: Bench, **environ: str) -> tuple[int, list[str]]:
    """Its exit code, and what it found wrong."""
    done = subprocess.run(
        [sys.executable, "-m", "app.doctor"],
        cwd=ROOT,
        env={**os.environ, **bench.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.returncode, [line.removeprefix("✗ ") for line in done.stdout.splitlines() if line.startswith("✗ ")]


@pytest.fixture
def healthy(bench: Bench) -> Process:
    """A worker, on a broker that keeps what it was given."""
    Redis.from_url(bench.address).config_set("appendonly", "yes")
    return bench.worker("threads")


def test_nothing_is_found_where_nothing_is_wrong(bench: Bench, healthy: Process) -> None:
    assert doctor(bench) == (0, [])


def test_each_line_says_what_mends_it(bench: Bench) -> None:
    Redis.from_url(bench.address).config_set("appendonly", "yes")
    done = subprocess.run(
        [sys.executable, "-m", "app.doctor"],
        cwd=ROOT,
        env={**os.environ, **bench.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["✗ no worker answers: tasks wait", "  → make up, or python -m app.worker"]


def test_an_engine_that_does_not_answer(bench: Bench, healthy: Process) -> None:
    code, (line,) = doctor(bench, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert code == 1 and line.startswith("no Docker engine answers (")


def test_a_broker_that_does_not_answer(bench: Bench) -> None:
    code, lines = doctor(bench, CELERY_BROKER_URL="redis://127.0.0.1:1/0")
    assert code == 1 and len(lines) == 1 and lines[0].startswith("the broker does not answer: ") and "refused" in lines[0]


def test_an_account_that_the_broker_refuses(bench: Bench) -> None:
    client: Any = Redis.from_url(bench.address)
    client.execute_command("ACL", "SETUSER", "kit", "on", ">right", "~*", "&*", "+@all")
    try:
        address = bench.address.replace("redis://", "redis://kit:wrong@").replace(":@", "@")
        code, (line,) = doctor(bench, CELERY_BROKER_URL=f"{address}/0")
    finally:
        client.execute_command("ACL", "DELUSER", "kit")
    assert code == 1 and line.startswith("the broker refuses the account (")


def test_a_results_server_that_does_not_answer(bench: Bench, healthy: Process) -> None:
    code, (line,) = doctor(bench, CELERY_RESULT_BACKEND="redis://127.0.0.1:1/0")
    assert code == 1 and line.startswith("the results server does not answer: ")


def test_a_server_that_throws_keys_away_or_forgets_them(bench: Bench, healthy: Process) -> None:
    client = Redis.from_url(bench.address)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        code, lines = doctor(bench)
    finally:
        client.config_set("maxmemory-policy", "noeviction")
    assert code == 1 and lines == [
        "the broker throws keys away when its memory is full (allkeys-lru)",
        "the broker writes no append-only file: a restart loses tasks",
        "the results server throws keys away when its memory is full (allkeys-lru)",
    ]


def test_a_worker_that_consumes_nothing(bench: Bench, app: Celery, healthy: Process) -> None:
    app.control.cancel_consumer("celery")
    until("it has stopped", lambda: vitals(app)["consuming"] == [], 20)
    code, (line,) = doctor(bench)
    assert code == 1 and line.endswith("lives and consumes nothing")


def test_a_queue_that_nobody_consumes(bench: Bench, app: Celery, healthy: Process) -> None:
    app.send_task("tests.operator.probes.say", queue="nowhere")
    code, (line,) = doctor(bench)
    assert code == 1 and line == "1 tasks wait in queue nowhere, which no worker consumes"


def test_a_clock_and_a_redelivery_that_are_wrong(bench: Bench, healthy: Process) -> None:
    bench.worker("threads", "-I", "tests.operator.wrong_clock")
    code, lines = doctor(bench)
    assert code == 1 and len(lines) == 2
    assert "the broker hands a task out again after 1 s, and a task may run for 300 s" in lines[0]
    assert lines[1].startswith("the clock of worker w1@")


def test_a_second_beat(bench: Bench, healthy: Process) -> None:
    for number in ("one", "two"):
        beat = bench.start("celery", "-A", "app", "beat", DATA_DIR=str(bench.folder / number))
        until("beat beats", beat.beat.exists, 30)
    code, (line,) = doctor(bench)
    assert code == 1 and line == "2 beats run: each sends every scheduled task"
