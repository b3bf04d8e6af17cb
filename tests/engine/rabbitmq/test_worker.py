"""Workers with ENGINE=fast, as processes of this machine: killed, stopped, without their results server; on each pool."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
from celery import Celery, chord
from celery.result import AsyncResult
from redis import Redis

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from testbed.servers.contract import ADMIN, APP
from tests.engine.rabbitmq.conftest import Urls
from tests.engine.rabbitmq.proxy import Proxy
from tests.harness.kit import kit
from tests.harness.waiting import until


class Fast:
    """A new queue, its workers, and a producer."""

    def __init__(self, urls: Urls, pool: str, tmp_path: Path) -> None:
        self.queue = f"engine.{uuid4()}"
        self.environ = {
            **os.environ,
            "CELERY_BROKER_URL": urls.broker,
            "CELERY_RESULT_BACKEND": urls.results,
            "RUNS": urls.results,
            "BROKER": "",
            "BACKEND": "",
            "ENGINE": "fast",
            "POOL": pool,
            "DATA_DIR": str(tmp_path),
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent / 'tasks'}",
        }
        self.pool = pool
        self.log = tmp_path / "worker.log"
        self.runs: Any = Redis.from_url(urls.results)
        self.proxies: list[Proxy] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.app = self._app()

    def behind_a_proxy(self, name: str) -> Proxy:
        """Let workers that start later reach the server of this variable through a proxy."""
        url = urlsplit(self.environ[name])
        proxy = Proxy(str(url.hostname), int(url.port or 0))
        self.proxies.append(proxy)
        user = f"{url.username}:{url.password}@" if url.username else ""
        self.environ[name] = url._replace(netloc=f"{user}127.0.0.1:{proxy.port}").geturl()
        return proxy

    def _app(self) -> Celery:
        made: Celery = kit(self.environ)
        return made

    def worker(self, *options: str) -> "subprocess.Popen[bytes]":
        self.node = f"{uuid4()}@here"
        flags = [*POOLS[self.pool].worker_flags, "-n", self.node, "-Q", self.queue, "--loglevel", "WARNING", *options]
        argv = [sys.executable, "-m", "celery", "-A", "engine_tasks", "worker", "--pool", self.pool, "-c", "2", *flags]
        with self.log.open("ab") as log:
            worker = subprocess.Popen(argv, cwd=ROOT, env=self.environ, stdout=log, stderr=log)
        self.workers.append(worker)
        return worker

    def send(self, name: str, *args: Any, **options: Any) -> "AsyncResult[Any]":
        return self.app.send_task(f"engine.{name}", args, queue=self.queue, **options)

    def send_many(self, count: int) -> list[str]:
        with self.app.producer_or_acquire() as producer:
            return [self.send("count", number, producer=producer).id for number in range(count)]

    def stored(self, ids: list[str]) -> int:
        """The number of these tasks that have a result."""
        backend: Any = self.app.backend
        found = self.runs.mget([backend.get_key_for_task(one) for one in ids])
        return sum(1 for value in found if value and b'"SUCCESS"' in value)

    def until_stored(self, ids: list[str], goal: int, seconds: float = 60) -> None:
        """Wait until some number of these tasks have a result."""
        until(f"{goal} of {len(ids)} tasks have a result", lambda: self.stored(ids) >= goal, seconds)

    def left(self) -> int:
        """The number of ready messages on the broker. After all workers have exited, these include the unacknowledged ones."""
        with self.app.connection_for_read() as connection:
            queue: Any = self.app.amqp.queues[self.queue](connection.default_channel)
            return int(queue.queue_declare(passive=True).message_count)

    def stop(self, worker: "subprocess.Popen[bytes]") -> None:
        """Send SIGTERM. The worker must exit with 0."""
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(60) == 0

    def ends_with_nothing_left(self, worker: "subprocess.Popen[bytes]") -> None:
        """A worker that is stopped after all tasks are done has acknowledged them all."""
        self.stop(worker)
        assert self.left() == 0

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
        for proxy in self.proxies:
            proxy.close()
        with self.app.connection_for_read() as connection:
            self.app.amqp.queues[self.queue](connection.default_channel).delete()
        self.app.close()


@pytest.fixture(params=list(POOLS))
def fast(request: pytest.FixtureRequest, urls: Urls, tmp_path: Path) -> Iterator[Fast]:
    Redis.from_url(urls.results.replace(f"//{APP}:", f"//{ADMIN}:")).flushdb()
    fast = Fast(urls, request.param, tmp_path)
    try:
        yield fast
    finally:
        fast.close()


COUNT = int(os.environ.get("CRASH_TASKS", "1000"))
KILLS = 5


def test_no_task_is_lost_when_workers_are_killed(fast: Fast, record_property: Callable[[str, object], None]) -> None:
    """After several SIGKILLs during the work, every task has its result. Some ran more than once."""
    ids = fast.send_many(COUNT)
    for kill in range(1, KILLS + 1):
        worker = fast.worker()
        goal = kill * COUNT // (KILLS + 1)
        fast.until_stored(ids, goal, 120)
        worker.kill()
        worker.wait()
    fast.worker()
    fast.until_stored(ids, COUNT, 180)
    runs = {int(number): int(times) for number, times in fast.runs.hgetall("runs").items()}
    assert sorted(runs) == list(range(COUNT))
    record_property("runs", sum(runs.values()))
    print(f"{fast.pool}: {COUNT} tasks, {KILLS} kills, {sum(runs.values())} runs")


def test_a_stopping_worker_hands_everything_in(fast: Fast) -> None:
    """At SIGTERM, done tasks are stored and acknowledged, and the others stay in the queue. No task runs twice."""
    ids = fast.send_many(COUNT)
    worker = fast.worker()
    fast.until_stored(ids, COUNT // 4)
    fast.stop(worker)
    runs = fast.runs.hgetall("runs")
    assert {int(times) for times in runs.values()} == {1}
    assert fast.stored(ids) == len(runs)
    until("the broker has the rest", lambda: fast.left() == COUNT - len(runs), 20)


def test_a_worker_goes_on_when_its_broker_is_back(fast: Fast) -> None:
    proxy = fast.behind_a_proxy("CELERY_BROKER_URL")
    ids = fast.send_many(COUNT)
    worker = fast.worker()
    for part in (1, 2):
        fast.until_stored(ids, part * COUNT // 4)
        proxy.cut()
    fast.until_stored(ids, COUNT, 120)
    fast.ends_with_nothing_left(worker)


def test_a_dead_connection_that_tells_nobody(fast: Fast) -> None:
    """The connections are dead, but not closed: tasks run again, and remote control answers again:
    fix locked_mailbox.
    """
    fast.environ["HEARTBEAT"] = "4"
    proxy = fast.behind_a_proxy("CELERY_BROKER_URL")
    worker = fast.worker()
    assert fast.send("count", 1).get(timeout=60) == 1
    until("it answers", lambda: fast.app.control.ping(timeout=1, destination=[fast.node]))
    proxy.stall()
    assert fast.send("count", 2).get(timeout=60) == 2
    until("it answers again", lambda: fast.app.control.ping(timeout=1, destination=[fast.node]), 60)
    assert worker.poll() is None
    proxy.close()


@pytest.mark.parametrize("fast", [pool.name for pool in POOLS.values() if not pool.sockets_patched], indirect=True)
def test_a_long_task_keeps_its_connection(fast: Fast) -> None:
    """A task that computes for longer than the broker's heartbeat timeout runs once, and its worker stays connected."""
    fast.environ["HEARTBEAT"] = "2"
    worker = fast.worker()
    assert fast.send("busy", 15).get(timeout=60) == 15
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(60) == 0
    assert "Connection to broker lost" not in fast.log.read_text()
    assert (fast.runs.hget("runs", "15"), fast.left()) == (b"1", 0)


def test_no_task_is_lost_while_the_results_server_is_away(fast: Fast) -> None:
    proxy = fast.behind_a_proxy("CELERY_RESULT_BACKEND")
    ids = fast.send_many(COUNT)
    worker = fast.worker()
    fast.until_stored(ids, COUNT // 4)
    proxy.cut(shut=True)
    until("it has tried more than once", lambda: proxy.refused >= 3, 60)
    proxy.cut(shut=False)
    fast.until_stored(ids, COUNT, 120)
    fast.ends_with_nothing_left(worker)


def test_a_short_tasks_result_does_not_wait_for_a_long_ones_end(fast: Fast) -> None:
    short = fast.send("count", 1)
    long = fast.send("nap", 8)
    fast.worker()
    assert short.get(timeout=60) == 1
    until("the long one is marked as started", lambda: long.state == "STARTED", 6)
    assert long.get(timeout=60) == 8


@pytest.mark.parametrize("fast", [pool.name for pool in POOLS.values() if pool.sockets_patched], indirect=True)
def test_a_green_pool_waits_for_no_event(fast: Fast) -> None:
    """Celery's loop waits for 0.1 s after each message: 1,000 tasks take it 100 s. celery_kit/fixes: green_loop"""
    ids = fast.send_many(1_000)
    worker = fast.worker("-E")
    fast.until_stored(ids, len(ids), 60)
    fast.ends_with_nothing_left(worker)


def test_every_kind_of_task(fast: Fast) -> None:
    """Failures, retries, early acknowledgement, custom states, no result, a chord: all are acknowledged in the end."""
    worker = fast.worker()
    failed, early, states = fast.send("fail"), fast.send("early", 1), fast.send("states")
    again, silent = fast.send("again"), fast.send("silent", 7)
    assert repr(failed.get(timeout=60, propagate=False)) == "ValueError('no')"
    assert (early.get(timeout=60), again.get(timeout=60)) == (1, 2)
    assert states.get(timeout=60) == "PROGRESS"
    until("the task without a result has run", lambda: fast.runs.hget("runs", "7") == b"1")
    assert silent.state == "PENDING"
    header = [fast.app.signature("engine.count", (n,), queue=fast.queue) for n in range(20)]
    body = fast.app.signature("engine.total", queue=fast.queue)
    assert chord(header, app=fast.app)(body).get(timeout=60) == sum(range(20))
    fast.ends_with_nothing_left(worker)
