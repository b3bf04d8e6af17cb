"""What is trusted without reason: packages and images that were changed, servers and clients without the right certificate."""

import shutil
import socket
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from celery_kit.base.target import ROOT
from tests.harness.certificates import Authority
from tests.security.checks.contract import AbsentError, Attempt, Check, Plant, Subject, kits_environ, run
from tests.security.test_containers import docker

#: A package of the locks, of which another wheel is offered.
PACKAGE, VERSION = "vine", "5.1.0"


def _forged(folder: Path) -> None:
    """A wheel of that name and version with other content."""
    about = f"{PACKAGE}-{VERSION}.dist-info"
    with zipfile.ZipFile(folder / f"{PACKAGE}-{VERSION}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{PACKAGE}/__init__.py", "FORGED = True\n")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {VERSION}\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")


def installs_forged(subject: Subject) -> bool:
    """An attempt: an index offers another wheel of a package's version, and it is installed."""
    folder = subject.folder / uuid4().hex
    folder.mkdir()
    _forged(folder)
    lock = (ROOT / "requirements/worker.txt").read_text()
    lines = lock[lock.index(f"\n{PACKAGE}==") + 1 :].splitlines()
    rest = (number for number, line in enumerate(lines) if number and not line.startswith(" "))
    locked = "\n".join(lines[: next(rest, len(lines))])
    # The documentation's `pip install celery` names no file.
    (folder / "wanted.txt").write_text(f"{PACKAGE}=={VERSION}\n" if subject.checkout is None else f"{locked}\n")
    words = ("install", "--quiet", "--no-index", "--no-deps", "--find-links", str(folder), "--target", str(folder / "into"))
    run(sys.executable, "-m", "pip", *words, "--requirement", str(folder / "wanted.txt"), cwd=folder)
    return (folder / f"into/{PACKAGE}/__init__.py").exists()


@contextmanager
def without_hashes(subject: Subject) -> Iterator[Subject]:
    """A requirement without a hash."""
    yield replace(subject, checkout=None)


class Signed:
    """An image and its papers, signed in a checkout; and what somebody then does to them."""

    def __init__(self, subject: Subject) -> None:
        assert subject.checkout
        self.folder, self.name = subject.checkout.folder, f"celery-kit-signed-{uuid4().hex[:8]}"
        image = subject.service("worker").facts["Config"]["Image"]
        docker("tag", image, f"{self.name}:prefork")
        self.environ = {**kits_environ(subject.checkout), "IMAGE": self.name, "POOL": "prefork"}
        if not (self.folder / ".git").exists():
            for words in ("init -q", "add .", "-c user.name=x -c user.email=x@example.com commit -q -m x"):
                subprocess.run(["git", *words.split()], cwd=self.folder, check=True)
        self.made("sign")
        self.key = self.folder / f"supply/{self.name}.pub"
        shutil.copy(self.folder / "supply/key.pub", self.key)

    def made(self, command: str, **given: str) -> bool:
        """Whether a command does it."""
        done = run(
            "make", "-s", command, *(f"{name}={value}" for name, value in given.items()), cwd=self.folder, environ=self.environ
        )
        return done.returncode == 0

    def image(self) -> None:
        """Somebody puts something into the image."""
        name = f"{self.name}:prefork"
        words = ["docker", "build", "--quiet", "--tag", name, "-"]
        subprocess.run(words, input=f"FROM {name}\nENV MORE=1\n", text=True, check=True, capture_output=True)

    def paper(self) -> None:
        """Somebody changes the SBOM."""
        for path in (self.folder / "supply").glob("prefork*.cdx.json"):
            path.write_text(path.read_text().replace('"celery"', '"other"'))

    def resign(self) -> None:
        """Somebody signs it with another key."""
        self.made("sign", SIGN_KEY=str(self.folder / f"supply/{self.name}.pem"))

    def remove(self) -> None:
        docker("image", "rm", "--force", f"{self.name}:prefork")
        shutil.rmtree(self.folder / "supply", ignore_errors=True)


def passes(change: Callable[[Signed], None]) -> Attempt:
    """An attempt: `make verify` finds nothing, with the key that was handed out. Plain Celery's images are not signed."""

    def attempt(subject: Subject) -> str:
        if subject.checkout is None:
            return "nothing is signed"
        signed = Signed(subject)
        try:
            if not signed.made("verify", VERIFY_KEY=str(signed.key)):
                raise AssertionError("the image that was signed is not verified")
            change(signed)
            if subject.urls.get("trusts") == "others":
                signed.resign()
                return "verified" if signed.made("verify") else ""
            return "verified" if signed.made("verify", VERIFY_KEY=str(signed.key)) else ""
        finally:
            signed.remove()

    return attempt


@contextmanager
def trusting(subject: Subject) -> Iterator[Subject]:
    """Whoever verifies takes the key that lies beside the image."""
    yield replace(subject, urls={**subject.urls, "trusts": "others"})


def context(subject: Subject, shows: bool = True) -> ssl.SSLContext:
    """What a client of this machine connects with. `shows`: its certificate."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    made.set_ciphers("DEFAULT:@SECLEVEL=0")
    if shows and subject.checkout:
        made.load_cert_chain(str(subject.checkout.folder / ".kit/tls/client/client.pem"))
    return made


def talks(subject: Subject, which: str, with_tls: ssl.SSLContext | None) -> bool:
    """Whether a server answers what it is asked, over TLS or without."""
    parts = urlsplit(subject.urls[which])
    asked, answer = (b"AMQP\0\0\x09\x01", b"\x01\0\0") if parts.scheme.startswith("amqp") else (b"PING\r\n", b"")
    with suppress(OSError), socket.create_connection(("127.0.0.1", parts.port or 0), timeout=10) as plain:
        one = with_tls.wrap_socket(plain, server_hostname="127.0.0.1") if with_tls else plain
        one.sendall(asked)
        said = one.recv(100)
        return said.startswith(answer or (b"-NOAUTH", b"+PONG"))
    return False


def without_tls(which: str) -> Attempt:
    """An attempt: a server answers without TLS."""
    return lambda subject: talks(subject, which, None)


def needs_tls(subject: Subject) -> None:
    if not talks(subject, "CELERY_BROKER_URL", context(subject)):
        raise AbsentError("there is no TLS")


def old_tls(subject: Subject) -> bool:
    """An attempt: a server agrees on TLS 1.1."""
    needs_tls(subject)
    old = context(subject)
    old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    return talks(subject, "CELERY_BROKER_URL", old)


def without_certificate(subject: Subject) -> bool:
    """An attempt: with SECURE=mutual, a client without a certificate is answered."""
    needs_tls(subject)
    return talks(subject, "CELERY_BROKER_URL", context(subject, shows=False))


@contextmanager
def loose(subject: Subject) -> Iterator[Subject]:
    """A server that takes any version and asks for no certificate, in the place of the broker."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.set_ciphers("DEFAULT:@SECLEVEL=0")
    made.minimum_version = ssl.TLSVersion.TLSv1
    with serving(subject, made, b"\x01\0\0-") as (port, _):
        where = urlsplit(subject.urls["CELERY_BROKER_URL"])
        yield replace(subject, urls={**subject.urls, "CELERY_BROKER_URL": f"amqps://127.0.0.1:{port}{where.path}"})


@contextmanager
def serving(subject: Subject, made: ssl.SSLContext, answer: bytes, **certificate: object) -> Iterator[tuple[int, list[bytes]]]:
    """A server with TLS: its port, and what clients say to it once they have accepted its certificate."""
    authority = certificate.get("authority") or Authority()
    assert isinstance(authority, Authority)
    names, days = certificate.get("names") or ("localhost",), certificate.get("days") or 5
    assert isinstance(names, tuple) and isinstance(days, int)
    key, pem = authority.signs(names, days)
    path = subject.folder / f"{uuid4().hex}.pem"
    path.write_bytes(pem + key)
    made.load_cert_chain(str(path))
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    plain, _ = server.accept()
                except OSError:
                    return
                with suppress(OSError), plain:
                    plain.settimeout(5)
                    with made.wrap_socket(plain, server_side=True) as one:
                        if said := one.recv(100):
                            heard.append(said)
                            one.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], heard


WRONG: dict[str, dict[str, object]] = {
    "that has expired": {"days": -1},
    "for another name": {"names": ("elsewhere",)},
    "of an unknown authority": {},
}


def believes(wrong: str) -> Attempt:
    """An attempt: a client tells a server with such a certificate who it is."""

    def attempt(subject: Subject) -> bool:
        authority, file = Authority(), subject.folder / f"{uuid4().hex}.pem"
        file.write_bytes((Authority() if wrong == "of an unknown authority" else authority).pem)
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with serving(subject, made, b"", authority=authority, **WRONG[wrong]) as (port, heard):
            app = subject.client()
            app.conf.update(broker_url=elsewhere(subject, port, file), broker_connection_timeout=3)
            if subject.checkout is None:
                # As the documentation has it: "if True the connection will use SSL with default SSL settings"; of a Redis it
                # says which keys are needed.
                app.conf.broker_use_ssl = True if subject.broker == "rabbitmq" else {
                    "ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": str(file),
                }  # fmt: skip
            with suppress(Exception), app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=1, timeout=5)
                channel: Any = connection.default_channel
                channel.client.ping()
            return bool(heard)

    return attempt


def elsewhere(subject: Subject, port: int, authorities: Path) -> str:
    """The broker's address with another server in it, and with these authorities."""
    url = subject.urls["CELERY_BROKER_URL"]
    own = str(subject.checkout.folder / ".kit/tls/client/ca.pem") if subject.checkout else ""
    url = url.replace(f"127.0.0.1:{urlsplit(url).port}", f"localhost:{port}")
    if own and own not in url:
        raise AssertionError(f"the address names no authorities: {url}")
    return url.replace(own, str(authorities)) if own else url


@contextmanager
def believing(subject: Subject) -> Iterator[Subject]:
    """A client that looks at no certificate."""
    url = subject.urls["CELERY_BROKER_URL"]
    url = url.replace("ssl_cert_reqs=required", "ssl_cert_reqs=none").replace(
        "ssl_check_hostname=true", "ssl_check_hostname=false"
    )
    yield replace(subject, urls={**subject.urls, "CELERY_BROKER_URL": url})


LOOSE, BELIEVES = Plant("a server that takes every client", loose), Plant("a client that looks at no certificate", believing)
TRUSTS = Plant("the key that lies beside the image is believed", trusting)
FORGED = Plant("a requirement without hashes", without_hashes)
ONCE = ("redis",)  # what needs no broker is tried once
ROWS = (
    Check("supply chain", "another wheel of a locked version is installed", installs_forged, FORGED, ONCE),
    Check("supply chain", "an image that was changed is verified", passes(Signed.image), TRUSTS, ONCE),
    Check("supply chain", "an SBOM that was changed is verified", passes(Signed.paper), TRUSTS, ONCE),
    Check("supply chain", "what another key has signed is verified", passes(Signed.resign), TRUSTS, ONCE),
    Check("encryption", "the broker answers without TLS", without_tls("CELERY_BROKER_URL"), kind="secure"),
    Check("encryption", "the results are given without TLS", without_tls("CELERY_RESULT_BACKEND"), kind="secure"),
    Check("encryption", "a server agrees on TLS 1.1", old_tls, LOOSE, kind="secure"),
    Check("encryption", "a client without a certificate is answered", without_certificate, LOOSE, kind="secure"),
    *(
        Check("encryption", f"a client believes a server with a certificate {wrong}", believes(wrong), BELIEVES, kind="secure")
        for wrong in WRONG
    ),
)
