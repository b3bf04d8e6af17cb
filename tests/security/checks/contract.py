"""What a check is, what it is tried on, and how a weakness is planted for it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from celery import Celery

from celery_kit import Kit
from celery_kit.base.target import ROOT
from testbed.stack import SESSION
from tests.deploy.conftest import Checkout
from tests.harness.containers import LABEL
from tests.harness.waiting import until
from tests.security.conftest import Target
from tests.security.test_containers import Running, docker

#: The areas of the table, in its order.
AREAS = (
    "messages", "control", "results", "files", "server users", "network", "containers", "images", "pages", "commands",
    "supply chain", "encryption",
)  # fmt: skip
KIT, PLAIN = "celery-kit", "plain Celery"
REPORT = ROOT / "docs/reports/checks.md"


class AbsentError(Exception):
    """The subject has nothing of that kind, such as no such page. Never raised for a stack of the kit."""


@dataclass(frozen=True)
class Subject:
    """A running stack, and what its attacker has: the address of its servers, with the app's own account."""

    side: str
    broker: str
    containers: list[Running]
    urls: dict[str, str]
    #: The users of its servers, by what they are for - app, admin -, with their passwords.
    accounts: dict[str, tuple[str, str]]
    folder: Path
    checkout: Checkout | None = None
    queue: str = "celery"
    #: Passwords of its pages, by the port in the stack.
    pages: dict[int, str] | None = None

    def service(self, name: str) -> Running:
        """The first container of a service. Raises AbsentError."""
        found = [one for one in self.containers if one.service == name]
        if not found:
            raise AbsentError(f"no service {name}")
        return found[0]

    @property
    def with_python(self) -> list[Running]:
        """The containers that run the app's code."""
        return [one for one in self.containers if one.service in ("worker", "beat", "flower")]

    @property
    def servers(self) -> list[Running]:
        return [one for one in self.containers if one.service in ("broker", "results")]

    @property
    def target(self) -> Target:
        return Target(self.broker, self.urls, self.folder)

    def client(self) -> Celery:
        """A producer: of the kit for a stack of the kit."""
        app: Celery = Kit("attacker", set_as_current=False) if self.side == KIT else Celery("attacker", set_as_current=False)
        app.conf.update(broker_url=self.urls["CELERY_BROKER_URL"], result_backend=self.urls["CELERY_RESULT_BACKEND"])
        return app

    def ports(self) -> dict[int, int]:
        """The host's published ports, by those in the stack."""
        found: dict[int, int] = {}
        for one in self.containers:
            for port, places in (one.facts["NetworkSettings"]["Ports"] or {}).items():
                found |= {int(port.partition("/")[0]): int(places[0]["HostPort"])} if places else {}
        return found

    def port(self, inside: int) -> int:
        """The host's port for one in the stack. Raises AbsentError."""
        if inside not in (ports := self.ports()):
            raise AbsentError(f"no port {inside}")
        return ports[inside]

    @property
    def vhost(self) -> str:
        return urlsplit(self.urls["CELERY_BROKER_URL"]).path.removeprefix("/") or "/"


Attempt = Callable[[Subject], object]


@dataclass(frozen=True)
class Plant:
    """A weakness, by its name, in a subject that is otherwise like the one given."""

    name: str
    made: Callable[[Subject], AbstractContextManager[Subject]]


@dataclass(frozen=True)
class Check:
    """A row of the table. `what`: what must not be possible. `attempt`: tries it, and returns what was found; empty: nothing.

    `brokers`: those whose stacks have the thing that is tried; empty: all. `kind`: the stack of the kit that it is tried on:
    `stack`, as `make up` gives it, or `secure`, with SECURE=mutual. `plant`: where it is possible; None: on plain Celery.
    """

    area: str
    what: str
    attempt: Attempt
    plant: Plant | None = None
    brokers: tuple[str, ...] = ()
    kind: str = "stack"

    @property
    def id(self) -> str:
        return f"{self.area}: {self.what}"

    def is_for(self, broker: str, kind: str) -> bool:
        """Whether it is tried on such a stack."""
        return kind == self.kind and (not self.brokers or broker in self.brokers)


def run(*argv: str, cwd: Path, environ: dict[str, str] | None = None, seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Returns its exit code and its output."""
    return subprocess.run(
        argv, cwd=cwd, env=environ, capture_output=True, text=True, errors="replace", check=False, timeout=seconds
    )


@contextmanager
def container(*words: str) -> Iterator[Running]:
    """A container by the words of `docker run`; removed at the end."""
    name = docker("run", "--detach", "--label", f"{LABEL}={SESSION}", *words)
    try:
        yield Running(name)
    finally:
        docker("rm", "--force", "--volumes", name)


def instead(subject: Subject, service: str, one: Running, **changes: Any) -> Subject:
    """The subject with another container in the place of a service's. `one` is made to be of that service."""
    one.facts["Config"]["Labels"] = {**(one.facts["Config"]["Labels"] or {}), "com.docker.compose.service": service}
    others = [other for other in subject.containers if other.service != service]
    return replace(subject, containers=[one, *others], **changes)


def worker(code: str = "", **environ: str) -> Callable[[Subject], AbstractContextManager[Subject]]:
    """Makes a worker beside the one of a stack, from the same image, on a queue of its own.

    `code` runs in each of its processes, before anything else; `environ`: its variables.
    """

    @contextmanager
    def made(subject: Subject) -> Iterator[Subject]:
        like, queue, folder = subject.service("worker"), f"planted-{uuid4().hex[:8]}", subject.folder / uuid4().hex
        folder.mkdir(mode=0o755)
        (folder / "sitecustomize.py").write_text(code)
        about = [*like.facts["Config"]["Env"], f"QUEUES={queue}", f"CELERY_WORKER_QUEUES={queue}"]
        about += ["PYTHONPATH=/planted", *(f"{key}={value}" for key, value in environ.items())]
        words = [word for line in about for word in ("--env", line)]
        networks = sorted(like.facts["NetworkSettings"]["Networks"])
        inside = next((name for name in networks if name.endswith("_inside")), networks[0])
        words += ["--network", inside, "--volumes-from", like.name, "--volume", f"{folder}:/planted:ro"]
        for group in like.facts["HostConfig"]["GroupAdd"] or ():  # that of its role's password
            words += ["--group-add", group]
        with container(*words, like.facts["Config"]["Image"]) as one:
            until("the planted worker consumes", lambda: "ready." in logs(one), 60, every=0.5)
            yield instead(subject, "worker", one, queue=queue)

    return made


def logs(one: Running, since: str = "") -> str:
    """What a container has written. `since`: a time of the engine's."""
    done = subprocess.run(
        ["docker", "logs", *(["--since", since] if since else []), one.name],
        capture_output=True, text=True, errors="replace", check=False, timeout=60,
    )  # fmt: skip
    return done.stdout + done.stderr


def kits_environ(checkout: Checkout) -> dict[str, str]:
    """The environment of a command that is typed in a checkout."""
    return {**checkout.environ, "NO_COLOR": "1", "TERM": os.environ.get("TERM", "xterm")}
