"""SECURE on running stacks: who is let in, what a client says of a wrong certificate, new ones under load."""

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.deploy.conftest import Checkout
from tests.deploy.conftest import checkout as checkout
from tests.harness.certificates import Authority
from tests.harness.kit import kit
from tests.security.test_containers import Running, docker

TASK = ("TASK=media.waveform", 'ARGS=["no such file"]')
#: By what is wrong with a server's certificate, what its client says.
WRONG = {
    "expired": "certificate has expired",
    "for another name": "Hostname mismatch, certificate is not valid for '",
    "of an unknown authority": "certificate verify failed",
}


@dataclass(frozen=True)
class Secured:
    """A stack with SECURE. `urls`: its servers, as programs of this machine reach them."""

    checkout: Checkout
    kind: str
    urls: dict[str, str]
    containers: dict[str, Running]

    @property
    def folder(self) -> Path:
        return self.checkout.folder / ".kit/tls"

    def started(self) -> dict[str, Any]:
        """When each container was started, and how often again."""
        facts = {name: json.loads(docker("inspect", one.name))[0] for name, one in self.containers.items()}
        return {name: (one["State"]["StartedAt"], one["RestartCount"]) for name, one in facts.items()}

    def context(self, shows: bool = True) -> ssl.SSLContext:
        """What a client of this machine connects with. `shows`: its certificate, if it has to."""
        context = ssl.create_default_context(cafile=str(self.folder / "client/ca.pem"))
        if shows and self.kind == "mutual":
            context.load_cert_chain(str(self.folder / "client/client.pem"))
        return context

    def answers(self, url: str, context: ssl.SSLContext | None) -> bool:
        """Whether a server answers what it is asked, over TLS or without."""
        parts = urlsplit(url)
        asked, answer = (b"AMQP\0\0\x09\x01", b"\x01\0\0") if parts.scheme == "amqps" else (b"PING\r\n", b"-NOAUTH")
        with suppress(OSError), socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as plain:
            one = context.wrap_socket(plain, server_hostname="127.0.0.1") if context else plain
            one.sendall(asked)
            return one.recv(100).startswith(answer)
        return False


STACKS = {"redis": ("prefork", "mutual"), "rabbitmq": ("gevent", "1")}


@pytest.fixture(scope="module", params=STACKS)
def secured(request: pytest.FixtureRequest, checkout: Checkout) -> Iterator[Secured]:
    broker, (pool, kind) = request.param, STACKS[request.param]
    assert checkout.make("up", f"BROKER={broker}", f"POOL={pool}", f"SECURE={kind}").returncode == 0
    try:
        urls = dict(line.split("=", 1) for line in checkout.make("urls").stdout.splitlines())
        label = f"label=com.docker.compose.project={checkout.environ['COMPOSE_PROJECT_NAME']}"
        names = docker("ps", "--filter", label, "--format", "{{.Names}}").split()
        yield Secured(checkout, kind, urls, {one.service: one for one in map(Running, names)})
    finally:
        checkout.make("down")


def test_a_stack_works_as_without(secured: Secured) -> None:
    sent = secured.checkout.make("send", *TASK, "WAIT=20").stdout
    assert "FileNotFoundError" in sent, "the task itself ran, and said what is wrong with its argument"
    shown = secured.checkout.make("status").stdout
    assert "amqps://kit:**@" in shown or "rediss://kit:**@" in shown
    assert secured.checkout.make("doctor").returncode == 0


def test_a_server_answers_by_tls_alone(secured: Secured) -> None:
    for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"):
        url = secured.urls[name]
        assert secured.answers(url, secured.context())
        assert not secured.answers(url, None)
        if secured.kind == "mutual":
            assert not secured.answers(url, secured.context(shows=False))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_old_versions_of_tls_are_refused(secured: Secured) -> None:
    for number, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_1, "")):
        context = secured.context()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, number
        for url in (secured.urls["CELERY_BROKER_URL"], secured.urls["CELERY_RESULT_BACKEND"]):
            agreed = ""
            with suppress(OSError), socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=10) as plain:
                agreed = context.wrap_socket(plain, server_hostname="127.0.0.1").version() or ""
            assert agreed == name


def test_new_certificates_while_tasks_run(secured: Secured, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new authority too: what runs goes on, what connects is let in, each task runs, and nothing is started again."""
    before, ended = secured.started(), threading.Event()
    sent: list[Any] = []
    app = kit({name: secured.urls[name] for name in ("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")}, "renewed")

    def send() -> None:
        while not ended.is_set():
            with app.connection_for_write() as connection:  # one that sees the certificates of its time
                sent.extend(app.send_task("workflows.count", (["id"], "one"), connection=connection) for _ in range(5))

    sending = threading.Thread(target=send)
    sending.start()
    try:
        for kind in ("1", "ca", "1"):
            done = secured.checkout.make("certificates", f"RENEW={kind}")
            assert done.returncode == 0 and "broker-1 uses its new certificate" in done.stdout
    finally:
        ended.set()
        sending.join()
    assert all(result.get(timeout=60) == {"picture": "one", "sent": 1} for result in sent)
    assert len(sent) >= 20 and secured.started() == before
    current = ssl.PEM_cert_to_DER_cert((secured.folder / "server/server.pem").read_text().partition("-----BEGIN PRIVATE")[0])
    with socket.create_connection(("127.0.0.1", urlsplit(secured.urls["CELERY_BROKER_URL"]).port or 0)) as plain:
        assert secured.context().wrap_socket(plain, server_hostname="127.0.0.1").getpeercert(binary_form=True) == current


@pytest.mark.parametrize("wrong", WRONG)
def test_a_client_says_what_is_wrong_with_a_certificate(secured: Secured, wrong: str) -> None:
    """And sends nothing. The right one is put back after it."""
    file, trusted, authority = secured.folder / "server/server.pem", secured.folder / "client/ca.pem", Authority()
    right, authorities = file.read_bytes(), trusted.read_bytes()
    names = ("elsewhere",) if wrong == "for another name" else ("broker", "results")
    key, certificate = authority.signs(names, days=-1 if wrong == "expired" else 5)
    try:
        if wrong != "of an unknown authority":
            trusted.write_bytes(authority.pem)
        file.write_bytes(certificate + key)
        docker("exec", secured.containers["broker"].name, "sh", "/usr/local/bin/start.sh", "reload")
        done = secured.checkout.make("send", *TASK)
        assert done.returncode and WRONG[wrong] in done.stdout + done.stderr and "Traceback" not in done.stderr
    finally:
        file.write_bytes(right)
        trusted.write_bytes(authorities)
        docker("exec", secured.containers["broker"].name, "sh", "/usr/local/bin/start.sh", "reload")
    assert secured.checkout.make("send", *TASK, "WAIT=20").stdout
