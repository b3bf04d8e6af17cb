"""A worker's report, on every pool, and its row in the table; and the row of a worker that does not answer."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import Any
from unittest.mock import patch

import pytest
from celery import Celery

from celery_kit.base.facts import Member, Queue, Server, vitals_of
from celery_kit.base.target import ROOT
from celery_kit.operate.look.status import Snapshot, lines, state_of
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until
from tests.operator.conftest import Machine


def vitals(app: Celery) -> dict[str, Any]:
    inspect: Any = app.control.inspect(timeout=10, limit=1)
    return dict(next(iter(inspect._request("vitals").values())))


def table(machine: Machine, **environ: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "celery_kit.operate.look.status"],
        cwd=ROOT,
        env={**os.environ, **machine.environ, **environ},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_tells_its_pool_its_queues_and_its_tasks(machine: Machine, app: Celery, pool: str) -> None:
    machine.worker(pool)
    app.send_task("tests.operator.probes.say").get(timeout=30)
    told = vitals(app)
    assert (told["pool"], told["consuming"], told["processed"]) == (pool, ["celery"], 1)
    assert told["concurrency"] == (1 if pool == "solo" else 2)
    assert told["memory"] > 10_000_000 and told["longest_task"] == 300
    if POOLS[pool].answers_while_busy:
        for _ in range(4):
            app.send_task("tests.operator.probes.wait", [5])
        until("two run", lambda: vitals(app)["active"] == 2, 20)
        assert pool in table(machine)


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_counts_how_its_tasks_waited_ran_and_ended(machine: Machine, app: Celery, pool: str, engine: str) -> None:
    """By task and queue, whatever the engine and the pool, without events. A producer whose clock is ahead is told apart."""
    machine.worker(pool, ENGINE=engine)
    for name, ahead in (("say", 0), ("say", 3_600), ("again", 0), ("fail", 0)):
        with patch("time.time", return_value=time.time() + ahead):
            sent = app.send_task(f"tests.operator.probes.{name}")
        with suppress(ValueError):
            sent.get(timeout=30)

    def counted() -> dict[str, dict[str, int]]:
        return {one["task"].rpartition(".")[2]: one["ended"] for one in vitals(app)["measures"] if one["queue"] == "celery"}

    ended = {"say": {"succeeded": 2}, "again": {"retried": 1, "succeeded": 1}, "fail": {"failed": 1}}
    until("all are counted", lambda: counted() == ended, 20)
    (say,) = (one for one in vitals(app)["measures"] if one["task"].endswith("say"))
    *waited, total = say["waited"]
    assert (sum(waited), say["early"]) == (1, 1) and 0 <= total < 60
    assert sum(say["ran"][:-1]) == 2 and 0 <= say["ran"][-1] < 60


def test_a_queue_shows_what_waits_what_is_held_and_for_how_long(machine: Machine, app: Celery) -> None:
    for priority in (0, 5, 9):
        app.send_task("tests.operator.probes.wait", [30], priority=priority)
    row = next(line for line in table(machine).splitlines() if line.startswith("celery ")).split()
    assert row[1:4] == ["3", "0", "-"] and int(row[4]) >= 0 and row[5] == "s"
    machine.worker("threads")
    until("two are held", lambda: "celery  0        3" in table(machine) or "celery  1        2" in table(machine), 20)


def test_a_worker_that_should_be_there_is_shown_by_its_state() -> None:
    answer = {"consuming": ["celery"]}
    members = [
        Member("worker", "running, healthy", True, "celery@good"),
        Member("worker", "running, healthy", True, "celery@deaf"),
        Member("worker", "running, healthy", True, "celery@idle"),
        Member("worker", "exited (137)", False, "celery@dead"),
    ]
    found = Snapshot(
        Server("Broker", "1.0", [Queue("celery", 10_000, 3, 1, 7_300.0)]),
        None,
        {"celery@good": vitals_of(answer), "celery@idle": vitals_of({"consuming": []})},
        members,
    )
    states = {member.node: state_of(member.node or "", found) for member in members}
    assert states == {
        "celery@good": "consuming",
        "celery@deaf": "running, healthy, NO ANSWER",
        "celery@idle": "ALIVE, CONSUMES NOTHING",
        "celery@dead": "EXITED (137)",
    }


def test_a_broker_that_hangs_up_is_called_once(machine: Machine) -> None:
    """The status of an unavailable broker is shown without a second attempt to connect."""
    calls = 0
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            nonlocal calls
            with suppress(OSError):  # the server is closed
                while True:
                    server.accept()[0].close()
                    calls += 1

        Thread(target=hang_up, daemon=True).start()
        url = f"amqp://kit:kit@127.0.0.1:{server.getsockname()[1]}/kit"
        shown = table(machine, BROKER="rabbitmq", CELERY_BROKER_URL=url)
    assert "DOES NOT ANSWER" in shown and calls == 1


def test_a_broker_that_is_away_does_not_hide_the_workers() -> None:
    found = Snapshot("does not answer: Connection refused", None, {}, [Member("worker", "running", True, "celery@w")])
    shown = "\n".join(lines(found))
    assert "DOES NOT ANSWER (Connection refused)" in shown and "running, cannot be asked" in shown
