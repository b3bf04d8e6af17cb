"""A copy of the project, as a fresh clone has it, for tests that type commands; nothing of the user's own is touched."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
import pytest

from celery_kit.base.target import ROOT
from testbed.stack import PORTS
from tests.harness.groups import Grouped, file_and_broker
from tests.harness.ports import free_ports

LONGEST = ("test_balance", "test_stacks", "test_versions")


@dataclass
class Checkout:
    """A folder to type commands in, with the environment that they see."""

    folder: Path
    environ: dict[str, str]

    def run(self, *argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its output is kept for the assertion that fails."""
        done = subprocess.run(
            argv, cwd=self.folder, env={**self.environ, **environ}, capture_output=True, text=True, timeout=400, check=False
        )
        print(f"$ {' '.join(argv)}\n{done.stdout}{done.stderr}exit code {done.returncode}")
        return done

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run("make", *words, **environ)

    def refusal(self, done: subprocess.CompletedProcess[str]) -> str:
        """The one line that a refused command says; what `make` itself adds does not count."""
        assert done.returncode == 2
        lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
        assert len(lines) == 1 and lines[0].startswith("celery-kit: "), lines
        return lines[0]


def clone(folder: Path) -> Checkout:
    """Every file that git would give a clone, the environment borrowed; names and ports as they are without a choice."""
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    if (ROOT / ".env").exists():  # which base images this machine has
        shutil.copy2(ROOT / ".env", folder / ".env")
    knobs = (
        "BROKER", "POOL", "BACKEND", "PYTHON", "CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "COMPOSE_PROJECT_NAME",
        "APP", "SOURCE", "REQUIREMENTS", "ENV_FILE", "QUEUES", "CELERY_APP",
        "MAKEFLAGS", "MFLAGS", "MAKELEVEL",
    )  # fmt: skip
    return Checkout(folder, {name: value for name, value in os.environ.items() if name not in knobs})


def of_its_own(name: str) -> dict[str, str]:
    """The environment of a stack with that name, on ports that are free."""
    return {**dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True)), "COMPOSE_PROJECT_NAME": name}


@contextmanager
def cloned(folder: Path, name: str) -> Iterator[Checkout]:
    """A clone whose stack has this name, and ports of its own. Afterwards the stack is gone."""
    checkout = clone(folder)
    checkout.environ |= of_its_own(name)
    try:
        yield checkout
    finally:
        kill(name)
        checkout.make("down")
        checkout.make("down", "VOLUMES=1")  # of the stacks that ran before the last one, too


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A clone with ports and names of its own."""
    with cloned(tmp_path_factory.mktemp("checkout") / "celery-kit", f"celery-kit-deploy-{os.getpid()}") as checkout:
        yield checkout


def kill(project: str) -> None:
    """Kill a stack's containers: one that a failed test left frozen, or out of memory, would take its whole grace."""
    with suppress(docker.errors.DockerException):  # no engine
        for container in docker.from_env().containers.list(filters={"label": f"com.docker.compose.project={project}"}):
            with suppress(docker.errors.APIError):  # it has just exited
                container.kill()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    return Grouped(config, log, file_and_broker)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest ones first: nothing has to wait for them in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)
