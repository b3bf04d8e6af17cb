"""No command of remote control ends a worker, or holds it up. celery_kit/fixes/control_commands.py"""

import os
import time
from pathlib import Path
from typing import Any

import amqp
import pytest
from celery import Celery
from redis import Redis

from celery_kit import Kit
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until
from tests.harness.workers import Process
from tests.security.conftest import Target, place_of
from tests.security.hostile import ODD, deep
from tests.security.test_gate import canary, children

#: Commands that nobody should be able to hurt a worker with.
COMMANDS: tuple[tuple[str, dict[str, Any]], ...] = (
    *(("time_limit", {"task_name": "security.touch", "hard": value}) for value in ODD),
    *(("time_limit", {"task_name": "security.touch", "soft": value}) for value in ODD),
    *(("rate_limit", {"task_name": "security.touch", "rate_limit": value}) for value in (*ODD, "1/x", "-1/s", "1e999/s")),
    *(("add_consumer", {"queue": value}) for value in (*ODD, "celery.dead", "celery.dead.failed", "celery.dead.revoked")),
    *(("revoke", {"task_id": value}) for value in ODD),
    *(("revoke", {"task_id": "x", "terminate": True, "signal": value}) for value in (*ODD, "KILL", "STOP")),
    *(("revoke_by_stamped_headers", {"headers": value}) for value in ODD),
    *(("pool_grow", {"n": value}) for value in ODD if not isinstance(value, int) or value < 100),
    *(("no_such_command", {"a": value}) for value in ODD),
)


@pytest.fixture
def app(target: Target) -> Any:
    made = Kit("hostile", set_as_current=False)
    made.conf.update(broker_url=target.urls["CELERY_BROKER_URL"], result_backend=target.urls["CELERY_RESULT_BACKEND"])
    return made


def node(worker: Process) -> str:
    return next(line.split()[-2] for line in worker.said.splitlines() if line.endswith("ready."))


@pytest.mark.parametrize("pool", ["prefork", "gevent"] if os.environ.get("QUICK") else POOLS)
def test_no_command_ends_a_worker(target: Target, queue: str, app: Celery, pool: str) -> None:
    with target.worker(pool, "fast", queue) as worker:
        canary(app, queue, worker, [])
        before = children(worker.process.pid)
        for number, (command, arguments) in enumerate(COMMANDS):
            try:
                app.control.broadcast(command, arguments)
            except Exception:  # the client itself refuses it
                continue
            if number % 25 == 24:
                app.send_task("security.touch", [number], queue=queue)
                canary(app, queue, worker, [])
        until("it answers", lambda: app.control.ping(timeout=5), 60)
        canary(app, queue, worker, [])
        assert worker.alive and children(worker.process.pid) >= before
        assert "onnection to broker lost" not in worker.said


@pytest.mark.parametrize("pool", ["prefork", "gevent", "solo"])
def test_no_raw_message_on_its_control_queue_ends_a_worker(target: Target, queue: str, app: Celery, pool: str) -> None:
    with target.worker(pool, "fast", queue) as worker:
        canary(app, queue, worker, [])
        for text in ("x", "{}", "5", "null", "[[]]", '{"method": 5}', '{"method": "ping", "arguments": 5}', deep(100_000)):
            broadcast(target, text.encode())
        canary(app, queue, worker, [])
        until("it answers", lambda: app.control.ping(timeout=5), 60)
        assert worker.alive and worker.said.count("ready.") == 1
        assert "onnection to broker lost" not in worker.said


def broadcast(target: Target, body: bytes) -> None:
    """Send bytes to the control queue of every worker, as it is no client of Celery's would."""
    url = target.urls["CELERY_BROKER_URL"]
    if target.broker == "redis":
        assert Redis.from_url(url).publish("/0.celery.pidbox", body)
        return
    with amqp.Connection(**place_of(url)) as connection:
        message = amqp.Message(body, content_type="application/json", content_encoding="utf-8")
        connection.channel().basic_publish(message, exchange="celery.pidbox")


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_revoking_many_ids_holds_nothing_up(target: Target, queue: str, app: Celery, pool: str) -> None:
    """The last of them does not run, and a task that comes meanwhile does not wait for all of them."""
    with target.worker(pool, "fast", queue) as worker:
        canary(app, queue, worker, [])
        ids = [f"revoked-{number}" for number in range(40_000)]
        app.control.revoke(ids)
        began = time.monotonic()
        until("it is known", lambda: "revoked-" in worker.said)
        canary(app, queue, worker, [])
        print(f"{pool}: {time.monotonic() - began:.1f} s")
        app.send_task("security.touch", task_id=ids[-1], queue=queue)
        canary(app, queue, worker, [])
        assert not target.runs(queue)
        assert len(set(stored(worker.log))) < len(ids)  # it is still at it


def stored(log: Path) -> list[str]:
    """The ids whose states were stored so far."""
    lines = [line for line in log.read_text().splitlines() if "flagged as revoked" in line]
    return [one for line in lines for one in line.rpartition(": ")[2].split(", ")]
