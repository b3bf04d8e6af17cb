"""A project of somebody else's, in a folder and an environment of its own: its workers, its producers, its web server."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import requests

from celery_kit.base.target import ROOT
from tests.compat.rig import Place
from tests.harness.ports import free_port
from tests.harness.waiting import until

EXAMPLES = ROOT / "examples"
CLIENT = Path(__file__).with_name("client.py")
#: Nothing of this repository's may reach a project's processes.
OURS = ("PYTHONPATH", "VIRTUAL_ENV", "BROKER", "BACKEND", "POOL", "QUICK")


@dataclass(frozen=True)
class Example:
    """A folder of examples/. `calls`: what is sent, and what comes of it. `long`: a task that takes a second for ten of its
    argument, and `begun` how often it began. `results`: where they are, if not on the place's server.
    """

    name: str
    app: str
    queues: str
    pools: tuple[str, str]
    calls: dict[str, tuple[list[Any], Any]]
    long: str
    begun: Callable[[Path], int]
    results: str | None = None

    @property
    def folder(self) -> Path:
        return EXAMPLES / self.name


@dataclass
class Project:
    """An example in a folder of its own, on one broker. `python`: its interpreter."""

    example: Example
    folder: Path
    python: Path
    place: Place

    @classmethod
    def of(cls, example: Example, folder: Path, python: Path, place: Place, kit: bool = True) -> "Project":
        """A copy; with the kit's change, where that is wanted."""
        shutil.copytree(example.folder, folder, ignore=shutil.ignore_patterns("__pycache__"))
        if kit:
            subprocess.run(["git", "apply", "kit.patch"], cwd=folder, check=True)
        project = cls(example, folder, python, place)
        if (folder / "manage.py").exists():
            project.done("python", "manage.py", "migrate", "--verbosity", "0")
        project.done("celery", "-A", example.app, "purge", "-f", "-Q", example.queues)  # one before has had the same broker
        return project

    @property
    def environ(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name not in OURS}
        servers = {"CELERY_BROKER_URL": self.place.broker}
        if self.example.results is None:
            servers["CELERY_RESULT_BACKEND"] = self.place.results
        return {**clean, **servers}

    def command(self, name: str, *argv: str) -> "subprocess.CompletedProcess[str]":
        """A command of the environment, to its end."""
        ran = [str(self.python.with_name(name)), *argv]
        return subprocess.run(ran, cwd=self.folder, env=self.environ, capture_output=True, text=True, check=False, timeout=120)

    def done(self, name: str, *argv: str) -> str:
        """What a command prints that must succeed."""
        ran = self.command(name, *argv)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def ask(self, *calls: list[Any]) -> list[Any]:
        """What the project's own code gets; client.py says how a call is written."""
        return _answers(self.done("python", *self._client(calls)))

    @contextmanager
    def sending(self, *calls: list[Any]) -> Iterator[Callable[[], list[Any]]]:
        """The same, not waited for; gives what waits for it."""
        log = self.folder / "client.log"
        with self.process(log, "python", *self._client(calls)) as client:

            def wait() -> list[Any]:
                assert client.wait(timeout=60) == 0
                return _answers(log.read_text())

            yield wait

    def _client(self, calls: Any) -> tuple[str, ...]:
        return str(CLIENT), self.example.app, json.dumps(calls)

    @contextmanager
    def process(self, log: Path, *argv: str) -> "Iterator[subprocess.Popen[bytes]]":
        """One in the background, that is killed with its children in the end."""
        with log.open("wb") as out:
            started = subprocess.Popen(
                [str(self.python.with_name(argv[0])), *argv[1:]],
                cwd=self.folder, env=self.environ, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        try:
            yield started
        except BaseException as error:
            error.add_note(f"{' '.join(argv[:4])} said:\n{log.read_text()[-4000:]}")
            raise
        finally:
            kill(started)

    @contextmanager
    def worker(self, pool: str) -> "Iterator[tuple[str, subprocess.Popen[bytes], Path]]":
        """`celery -A … worker -P …`, as a team starts it, once it consumes; gives its name, its process and its log."""
        name = f"{uuid4().hex[:6]}@example"
        log = self.folder / f"{name}.log"
        argv = ("-A", self.example.app, "worker", "-P", pool, "-c", "4", "-n", name, "-l", "INFO", "-Q", self.example.queues)
        with self.process(log, "celery", *argv) as started:

            def ready() -> bool:
                assert started.poll() is None, f"the worker ended with {started.returncode}"
                return "ready." in log.read_text()

            until("the worker consumes", ready, 120)
            yield name, started, log

    @contextmanager
    def web(self, *argv: str) -> Iterator[str]:
        """A web server whose command takes its port last; gives its address once it answers."""
        port = free_port()
        address = f"http://127.0.0.1:{port}"
        with self.process(self.folder / "web.log", *argv[:-1], argv[-1].format(port=port)):
            until("the web server answers", lambda: _is_there(address), 60)
            yield address


def kill(process: "subprocess.Popen[bytes]") -> None:
    """Without a word: the worker and its children at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(said: str) -> list[Any]:
    answers: list[Any] = json.loads(said.splitlines()[-1])
    return answers


def _is_there(address: str) -> bool:
    try:
        requests.get(address, timeout=5)
    except requests.ConnectionError:
        return False
    return True
