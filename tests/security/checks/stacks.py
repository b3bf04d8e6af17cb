"""The stacks that the table is tried on: the kit's, by `make up`, and plain Celery's, by its documentation."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import settings
from tests.deploy.conftest import clone, kill, of_its_own
from tests.harness.waiting import until
from tests.security.checks.contract import KIT, PLAIN, Subject, logs
from tests.security.test_containers import Running, docker
from tests.security.test_pages import passwords


def _containers(project: str) -> list[Running]:
    labels = (f"com.docker.compose.project={project}", "com.docker.compose.oneoff=False")
    filters = [word for one in labels for word in ("--filter", f"label={one}")]  # images have the first one too
    return [Running(name) for name in docker("ps", *filters, "--format", "{{.Names}}").split()]


@contextmanager
def of_kit(broker: str, folder: Path, kind: str = "stack") -> Iterator[Subject]:
    """A stack as `make up` gives it, with its pages; with `kind` secure, with TLS on both sides, without pages."""
    folder.mkdir(exist_ok=True)
    checkout = clone(folder / "celery-kit")
    project = f"celery-kit-checks-{os.getpid()}-{broker}-{kind}"
    checkout.environ |= of_its_own(project)
    how = "MONITOR=1" if kind == "stack" else "SECURE=mutual"
    try:
        assert checkout.make("up", f"BROKER={broker}", "POOL=prefork", how).returncode == 0
        shown = dict(line.split("=", 1) for line in checkout.make("urls", "ROLE=operator").stdout.splitlines())
        found = _containers(project)
        server = next(one for one in found if one.service == "broker")
        # What the operator cannot do, no other role can.
        files = (("app", "kit", "operator"), ("worker", "worker", "worker"), ("admin", "admin", "admin"))
        accounts = {name: (user, server.sh(f'cat "$KEYS/{file}"')) for name, user, file in files}
        pages = passwords(checkout) if kind == "stack" else {}
        urls = {name: shown[name] for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")}
        yield Subject(KIT, broker, found, urls, accounts, folder, checkout, pages=pages)
    finally:
        kill(project)
        checkout.make("down")
        checkout.make("down", "VOLUMES=1")


#: By broker: the port of the server, its address for a program of this machine, the account that all use.
DOCUMENTED = {
    "redis": (6379, "redis://127.0.0.1:{}/0", ("default", "")),
    "rabbitmq": (5672, "amqp://guest:guest@127.0.0.1:{}//", ("guest", "guest")),
}


@contextmanager
def of_plain(broker: str, folder: Path) -> Iterator[Subject]:
    """A stack of plain Celery: the server's image with its own settings, and the commands of Celery's documentation."""
    folder.mkdir(exist_ok=True)
    project, file = f"celery-kit-checks-{os.getpid()}-{broker}-plain", ROOT / f"tests/security/plain/compose.{broker}.yaml"
    image = f"{settings().get('IMAGE') or 'celery-kit'}-plain:latest"
    environ = {**os.environ, **settings(), "PLAIN_IMAGE": image}

    def compose(*words: str) -> None:
        argv = ["docker", "compose", "--project-name", project, "--file", str(file), *words]
        done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        compose("up", "--detach", "--build")
        found = _containers(project)
        worker = next(one for one in found if one.service == "worker")
        until("the worker consumes", lambda: "ready." in logs(worker), 120, every=1)
        subject = Subject(PLAIN, broker, found, {}, {}, folder)
        port, url, account = DOCUMENTED[broker]
        urls = {"CELERY_BROKER_URL": url.format(subject.port(port))}
        urls["CELERY_RESULT_BACKEND"] = f"redis://127.0.0.1:{subject.port(6379)}/1"
        yield Subject(PLAIN, broker, found, urls, {"app": account, "admin": account}, folder)
    finally:
        compose("down", "--volumes", "--timeout", "1")
