"""Producers with an unavailable broker. These tests have their own brokers, which they stop, freeze and alarm."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.utils.uuid import uuid

from celery_kit.base.target import ROOT
from testbed.servers import SERVERS
from testbed.stack import Stack
from tests.harness.kit import kit
from tests.harness.ports import free_port
from tests.harness.waiting import until

#: Deadlines in seconds for a broker to be available again, and for a producer to give up. They are no expectations.
BACK, GIVE_UP = 90, 45


class Broker:
    """A broker that a test may stop or break. After a restart it listens on the same port."""

    def __init__(self, name: str) -> None:
        self.name, self.stack = name, Stack(name, "-producer", ["broker"])
        port, server = str(free_port()), SERVERS[name]
        self.stack.environ |= dict.fromkeys(("RABBITMQ_PORT", "REDIS_PORT"), port)
        self.url = server.url.format(host="127.0.0.1", port=port, namespace=server.default)

    @property
    def container(self) -> Any:
        return self.stack.container("broker")

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.container.stop(timeout=20)
        try:
            yield
        finally:
            self.stack.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the broker: its connections stay open, but nothing answers."""
        self.container.pause()
        try:
            yield
        finally:
            self.container.unpause()

    @contextmanager
    def alarmed(self) -> Iterator[None]:
        """Raise a memory alarm: the broker accepts no messages."""

        def watermark(*value: str) -> None:
            command = ["rabbitmqctl", "set_vm_memory_high_watermark", *value]
            assert self.container.exec_run(command, user="rabbitmq").exit_code == 0

        watermark("absolute", "1")
        try:
            yield
        finally:
            watermark("0.6")


@dataclass
class Producer:
    """A producer on this broker, in this process or as a command."""

    broker: Broker
    environ: dict[str, str]

    def app(self, **environ: str) -> Celery:
        """A new app, like that of another process."""
        made: Celery = kit({**self.environ, **environ})
        return made

    def python(self, *argv: str, **environ: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, **self.environ, **environ}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *argv], cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )

    def run(self, *argv: str, **environ: str) -> tuple[int, list[str], list[str]]:
        """Run `python -m celery_kit.operate.look.send …`, which has to exit by itself. Returns the exit code, and the lines of
        output and of errors.
        """
        with self.python("-m", "celery_kit.operate.look.send", *argv, **environ) as process:
            try:
                out, err = process.communicate(timeout=GIVE_UP)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return process.returncode, out.splitlines(), err.splitlines()

    def received(self, queue: str) -> list[str]:
        """Take all tasks out of a queue, and return their ids, in order."""
        app, ids = self.app(), []
        with app.connection_for_read() as connection:
            where = app.amqp.queues[queue](connection.default_channel)
            where.declare()
            while message := where.get(no_ack=True):
                ids.append(message.headers["id"])
        app.close()
        return ids


@pytest.fixture(scope="session")
def results() -> str:
    """The address of a results server that does not exist: a producer does not need it."""
    return f"redis://127.0.0.1:{free_port()}/0"


@pytest.fixture(scope="session", params=list(SERVERS))
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    broker = Broker(request.param)
    with broker.stack:
        yield broker


@pytest.fixture
def producer(broker: Broker, results: str) -> Producer:
    environ = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": results, "PUBLISH_TIMEOUT": "3"}
    return Producer(broker, environ)


@pytest.fixture
def queue() -> str:
    return f"queue-{uuid()}"


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def waits(what: str, condition: Callable[[], Any]) -> Any:
    return until(what, condition, BACK)
