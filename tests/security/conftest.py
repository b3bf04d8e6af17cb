"""Brokers, workers and senders of the tests with hostile messages."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import amqp
import pytest
from redis import Redis

from celery_kit.brokers import BROKERS
from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout, cloned
from tests.harness.groups import Grouped, file_and_broker
from tests.harness.servers import Server, rabbitmq
from tests.harness.workers import Process, wait_for_worker, worker_argv
from tests.security.hostile import Hostile, amqp_message
from tests.security.test_containers import Running, docker

#: The tests of one stack.
SHARED = ("containers", "pages", "passwords")
#: The largest message that RabbitMQ 4 accepts, in bytes.
MOST = 16 * 1024 * 1024


def to_redis(url: str, queue: str, messages: Iterator[Hostile]) -> int:
    """Send them; those that only AMQP has are left out. Returns their number."""
    client, number = Redis.from_url(url, socket_timeout=60), 0  # large messages, to a busy machine
    for one in messages:
        if one.table is None and one.encoded is None:
            client.lpush(queue, one.item(queue))
            number += one.settles
    return number


def place_of(url: str) -> dict[str, Any]:
    """The arguments of py-amqp's connection for a broker's URL."""
    account, _, place = url.removeprefix("amqp://").rpartition("@")
    host, _, vhost = place.partition("/")
    user, _, password = account.partition(":")
    return {"host": host, "userid": user, "password": password, "virtual_host": vhost}


def to_rabbitmq(url: str, queue: str, messages: Iterator[Hostile]) -> int:
    """Send them; those that AMQP has no form for are left out. Returns their number."""
    number, connection = 0, None
    for one in messages:
        if one.raw is not None or len(one.body) > MOST:
            continue
        try:
            message = amqp_message(one)
            message._serialize_properties()  # type: ignore[attr-defined]
        except Exception:
            continue
        if connection is None:
            connection = amqp.Connection(**place_of(url), confirm_publish=True)
            connection.connect()
            channel = connection.channel()
        try:
            channel.basic_publish(message, routing_key=queue)
            number += one.settles
        except (amqp.AMQPError, OSError):
            if one.encoded is None:
                raise
            connection.collect()
            connection = None  # the broker itself refuses such properties, and closes the channel or the connection
    if connection:
        connection.close()
    return number


SENDERS: dict[str, Callable[[str, str, Iterator[Hostile]], int]] = {"redis": to_redis, "rabbitmq": to_rabbitmq}


class Target:
    """A broker, and the folder of its workers."""

    def __init__(self, broker: str, urls: dict[str, str], folder: Path) -> None:
        self.broker, self.urls, self.folder = broker, urls, folder

    def send(self, queue: str, messages: Iterator[Hostile]) -> int:
        """Send hostile messages, in a thread with a stack that holds deep ones. Returns their number."""
        sent: list[Any] = []

        def run() -> None:
            sent.append(SENDERS[self.broker](self.urls["CELERY_BROKER_URL"], queue, messages))

        limit, size = sys.getrecursionlimit(), threading.stack_size(512 * 1024 * 1024)
        sys.setrecursionlimit(100_000)
        try:
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
        finally:
            sys.setrecursionlimit(limit)
            threading.stack_size(size)
        (number,) = sent
        return int(number)

    @contextmanager
    def worker(self, pool: str, engine: str, queue: str, **environ: str) -> Iterator[Process]:
        argv = worker_argv("tests.security.app", pool, queue)
        runs = self.folder / f"{queue}.runs"
        runs.touch()
        about = {"ENGINE": engine, "RUNS": str(runs), "DATA_DIR": str(self.folder)}
        one = Process(argv, self.folder / f"{queue}.log", {**self.urls, **about, **environ})
        try:
            wait_for_worker(one)
            yield one
        finally:
            one.kill()

    def runs(self, queue: str) -> int:
        return len((self.folder / f"{queue}.runs").read_text().splitlines())


@pytest.fixture(scope="session", params=SERVERS)
def urls(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, str]]]:
    if "redis" in BROKERS[request.param].schemes:
        with Server() as server:
            yield request.param, server.urls
        return
    with rabbitmq("results") as (url, stack):
        results = os.environ.get("CELERY_RESULT_BACKEND") or (stack and stack.results_url(3))
        yield request.param, {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": str(results)}


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """The clone of :func:`stack`."""
    with cloned(tmp_path_factory.mktemp("checkout") / "celery-kit", f"celery-kit-shared-{os.getpid()}") as checkout:
        yield checkout


@pytest.fixture(scope="session", params=SERVERS)
def stack(request: pytest.FixtureRequest, checkout: Checkout) -> Iterator[list[Running]]:
    """The containers of a stack, with its monitoring; the files of SHARED use the same one."""
    assert checkout.make("up", f"BROKER={request.param}", "POOL=prefork", "MONITOR=1").returncode == 0
    try:
        labels = (f"com.docker.compose.project={checkout.environ['COMPOSE_PROJECT_NAME']}", "com.docker.compose.oneoff=False")
        filters = [word for one in labels for word in ("--filter", f"label={one}")]  # images have the first one too
        yield [Running(name) for name in docker("ps", *filters, "--format", "{{.Names}}").split()]
    finally:
        checkout.make("down")


@pytest.fixture
def target(urls: tuple[str, dict[str, str]], tmp_path: Path) -> Target:
    return Target(*urls, tmp_path)


@pytest.fixture
def queue() -> str:
    return f"hostile-{uuid4().hex[:8]}"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    """The tests that share a stack run in one process."""
    return Grouped(config, log, lambda nodeid: re.sub(rf".*test_({'|'.join(SHARED)})\.py", "shared", file_and_broker(nodeid)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first: nothing has to wait for them in the end."""
    items.sort(key=lambda item: item.path.stem != "test_table")
