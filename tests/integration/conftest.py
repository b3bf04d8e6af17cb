"""Stacks for the tests: each broker once, as its compose file starts it; beside it a worker container a combination.

Workers of all chosen combinations start side by side at once; each has a namespace of its own on its broker.
"""

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import docker
import pytest
import requests
from celery import Celery
from dotenv import dotenv_values
from testcontainers.compose import DockerCompose
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from app import Kit
from app.stack import ROOT
from tests.matrix import COMBINATIONS, SERVERS, Combination, parameters
from tests.wait import until

# The reaper is an image that a closed network cannot pull; this session takes down what it started, on Ctrl-C too.
testcontainers_config.ryuk_disabled = True

PROBES = Path(__file__).with_name("probes.py")


class Stack:
    """The servers of one broker's compose file - broker, results, mail catcher - on ports that were free."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.project = f"celery-kit-test-{name}-{os.getpid()}"
        self.environ = {
            **{key: value for key, value in dotenv_values(ROOT / ".env").items() if value},
            "COMPOSE_PROJECT_NAME": self.project,
            **dict.fromkeys(("RABBITMQ_PORT", "RABBITMQ_MANAGEMENT_PORT", "REDIS_PORT", "MAIL_PORT"), "0"),
        }
        file = f"compose.{name}.yaml"
        self.compose = DockerCompose(str(ROOT), file, services=["broker", "mail"], wait=False)
        # The stacks with a results server of their own; elsewhere the broker answers to that name.
        with patch.dict(os.environ, self.environ):
            known = subprocess.run(
                ["docker", "compose", "-f", file, "config", "--services"], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.split()
        self.results_service = "results" if "results" in known else "broker"
        self.compose.services = sorted({"broker", "mail", self.results_service})

    def start(self) -> None:
        with patch.dict(os.environ, self.environ):
            self.compose.start()

    def wait(self) -> None:
        """Until every server is healthy."""
        client = docker.from_env()
        for service in self.compose.services or []:
            until(f"{service} of {self.name} is healthy", lambda s=service: self._health(client, s) == "healthy", 180)  # type: ignore[misc]

    def _health(self, client: Any, service: str) -> str:
        return str(client.api.inspect_container(f"{self.project}-{service}-1")["State"]["Health"]["Status"])

    def stop(self) -> None:
        with patch.dict(os.environ, self.environ):
            self.compose.stop()

    def port(self, number: int, service: str = "broker") -> int:
        """The host's port for one of a service."""
        with patch.dict(os.environ, self.environ):
            return int(self.compose.get_service_port(service, number) or 0)

    def run(self, *argv: str) -> None:
        """A `docker compose` command on this stack, such as `stop mail`."""
        with patch.dict(os.environ, self.environ):
            subprocess.run(
                ["docker", "compose", "-f", f"compose.{self.name}.yaml", *argv], cwd=ROOT, check=True, capture_output=True
            )

    def messages(self) -> list[dict[str, Any]]:
        """What the mail catcher took."""
        return list(requests.get(f"http://127.0.0.1:{self.port(8025, 'mail')}/messages", timeout=5).json())


@dataclass
class Running:
    """A combination that runs: its worker's container, and what a producer on the host needs."""

    combination: Combination
    stack: Stack
    worker: DockerContainer
    environ: dict[str, str]
    data: Path

    def app(self) -> Celery:
        """A Celery app like that of another process: same code, this combination's settings."""
        with patch.dict(os.environ, self.environ):
            settings = runpy.run_module("app.config")
        app = Kit(str(self.combination), set_as_current=False)
        app.config_from_object(SimpleNamespace(**settings))
        return app

    def python(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """`python -m …` on the host, as a producer of this combination."""
        environ = {**os.environ, **self.environ}
        return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)

    def logs(self) -> str:
        return b"".join(self.worker.get_logs()).decode(errors="replace")


class Bench:
    """All that the session started."""

    def __init__(self, combinations: list[Combination]) -> None:
        self.stacks = {name: Stack(name) for name in dict.fromkeys(one.broker.name for one in combinations)}
        self.running: dict[Combination, Running] = {}
        self.data = Path(tempfile.mkdtemp(prefix="celery-kit-test-"))
        self.data.chmod(0o755)

    def start(self, combinations: list[Combination]) -> None:
        for stack in self.stacks.values():
            stack.start()
        for stack in self.stacks.values():
            stack.wait()
        for name in self.stacks:
            for number, one in enumerate(one for one in combinations if one.broker.name == name):
                self.running[one] = self._start_worker(number, one)

    def _start_worker(self, number: int, one: Combination) -> Running:
        stack, server = self.stacks[one.broker.name], SERVERS[one.broker.name]
        namespace = server.namespace(number, stack.port)
        data = self.data / str(one)
        data.mkdir()
        data.chmod(0o777)  # the image's user is not this one
        worker = (
            DockerContainer(f"celery-kit:{one.pool.name}")
            .with_envs(
                BROKER=one.broker.name,
                BACKEND=one.backend.name,
                CELERY_BROKER_URL=server.url.format(host="broker", port=server.port, namespace=namespace),
            )
            .with_volume_mapping(str(data), "/data", "rw")
            .with_volume_mapping(str(PROBES), "/srv/app/tasks/probes.py", "ro")
            .with_kwargs(network=f"{stack.project}_default")
        )
        worker.start()
        environ = {
            "BROKER": one.broker.name,
            "BACKEND": one.backend.name,
            "POOL": one.pool.name,
            "CELERY_BROKER_URL": server.url.format(host="127.0.0.1", port=stack.port(server.port), namespace=namespace),
        }
        if one.backend.has_server:
            environ["CELERY_RESULT_BACKEND"] = f"redis://127.0.0.1:{stack.port(6379, stack.results_service)}/1"
        return Running(one, stack, worker, environ, data)

    def stop(self) -> None:
        for running in self.running.values():
            running.worker.stop()
        for stack in self.stacks.values():
            stack.stop()
        shutil.rmtree(self.data, ignore_errors=True)


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """The servers, and a worker for each combination that a collected test asks for."""
    try:
        docker.from_env().ping()
    except docker.errors.DockerException:
        pytest.exit("no Docker engine answers, and these tests need one: run 'make engine' first", returncode=2)
    asked = {
        item.callspec.params["combination"]
        for item in request.session.items
        if hasattr(item, "callspec") and "combination" in item.callspec.params
    }
    combinations = [one for one in COMBINATIONS if one in asked]
    bench = Bench(combinations)
    try:
        bench.start(combinations)
        yield bench
    finally:
        bench.stop()


@pytest.fixture(params=parameters(COMBINATIONS), scope="session")
def combination(request: pytest.FixtureRequest) -> Combination:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="session")
def running(bench: Bench, combination: Combination) -> Running:
    """This combination, its worker consuming."""
    running = bench.running[combination]
    container = running.worker.get_wrapped_container()

    def healthy() -> bool:
        container.reload()
        assert container.status == "running", f"the worker ended:\n{running.logs()}"
        return container.exec_run("healthy").exit_code == 0  # type: ignore[no-any-return]

    until(f"the worker of {combination} consumes", healthy, 120)
    return running


@pytest.fixture(scope="session")
def app(running: Running) -> Iterator[Celery]:
    app = running.app()
    yield app
    app.close()
