"""Signed messages: three settings, all or none, checked before a message is signed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from celery.exceptions import SecurityError
from celery.security.certificate import Certificate

from celery_kit.base.keys import Keys
from celery_kit.base.security import Signing
from celery_kit.base.signing import Signer
from celery_kit.base.target import ROOT
from tests.harness.certificates import certificate
from tests.harness.waiting import until

Environ = dict[str, str]


@pytest.fixture
def signing(tmp_path: Path) -> Callable[..., Environ]:
    """Makes a key, its certificate, valid for so many seconds, and a store that holds it; gives the three variables."""

    def make(valid: float = 3_600) -> Environ:
        key, made = certificate("test", valid)
        (tmp_path / "key").write_bytes(key)
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / "test.pem").write_bytes(made)
        return {
            "SECURITY_KEY": str(tmp_path / "key"),
            "SECURITY_CERTIFICATE": str(tmp_path / "store" / "test.pem"),
            "SECURITY_CERT_STORE": str(tmp_path / "store"),
        }

    return make


def python(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: signing is for a whole process."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "BROKER": "redis", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_the_three_settings_nothing_is_signed() -> None:
    assert Signing.from_environ({}) is None
    assert Signing.from_environ({"SECURITY_KEY": ""}) is None


def test_all_that_a_process_sends_is_signed(signing: Callable[..., Environ]) -> None:
    environ = signing()
    given = Signing.from_environ(environ)
    assert given and given.settings(["json"]) == {
        "security_key": environ["SECURITY_KEY"],
        "security_certificate": environ["SECURITY_CERTIFICATE"],
        "security_cert_store": environ["SECURITY_CERT_STORE"],
        "security_window": 86_400,
        "security_body_only": False,
        "accept_content": ["json"],
        "result_serializer": "auth",
        "result_accept_content": ["auth"],
        "event_serializer": "celery-kit-event",
    }
    transition = Signing.from_environ({**environ, "SECURITY_BODY_ONLY": "1"})
    assert transition and transition.settings(["json"])["accept_content"] == ["json", "auth"]


@pytest.mark.parametrize("serializer", ["json", "yaml", "msgpack"])
def test_task_serializer_is_that_of_what_is_signed(signing: Callable[..., Environ], serializer: str) -> None:
    """The app signs as soon as it has its settings, and reads back what it signed."""
    program = """
import json
from base64 import b64decode
from kombu.serialization import dumps, loads
from app import app
accepted = app.conf.accept_content
kind, encoding, body = dumps([1, "ü"], serializer="auth")
inner = b64decode(body).split(bytes([0, 1]))[2].decode()
print(json.dumps([accepted, inner, loads(body, kind, encoding, accept={kind})]))
"""
    done = python(program, TASK_SERIALIZER=serializer, ACCEPT_CONTENT="", **signing())
    assert done.returncode == 0, done.stderr
    kinds = {"json": "application/json", "yaml": "application/x-yaml", "msgpack": "application/x-msgpack"}
    assert json.loads(done.stdout) == [[serializer], kinds[serializer], [1, "ü"]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"SECURITY_KEY": ""}, "together; not set: SECURITY_KEY"),
        ({"SECURITY_CERTIFICATE": "", "SECURITY_CERT_STORE": ""}, "not set: SECURITY_CERTIFICATE, SECURITY_CERT_STORE"),
        ({"SECURITY_KEY": "/none.key"}, "SECURITY_KEY=/none.key cannot be read: No such file or directory"),
        ({"SECURITY_CERTIFICATE": "/tmp"}, "SECURITY_CERTIFICATE=/tmp cannot be read: Is a directory"),
        ({"SECURITY_WINDOW": "5"}, "SECURITY_WINDOW=5 is not allowed; a whole number from 60 to 31536000 seconds"),
        ({"SECURITY_BODY_ONLY": "yes"}, "SECURITY_BODY_ONLY=yes is not known; allowed: 0, 1"),
        ({"SECURITY_CERT_STORE": "/none/*.pem"}, "SECURITY_CERT_STORE=/none/*.pem holds no certificate; allowed: a directory"),
    ],
)
def test_what_cannot_sign_is_refused_in_one_line(
    signing: Callable[..., Environ], changed: Environ, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        Signing.from_environ({**signing(), **changed})
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celery-kit: ") and said in line


@pytest.mark.parametrize(("spoilt", "said"), [("SECURITY_KEY", "key"), ("SECURITY_CERTIFICATE", "certificate")])
def test_what_is_no_key_and_no_certificate_is_refused_in_one_line(
    signing: Callable[..., Environ], tmp_path: Path, spoilt: str, said: str
) -> None:
    (tmp_path / "spoilt").write_text("no PEM")
    done = python("from app import app; app.conf.timezone", **{**signing(), spoilt: str(tmp_path / "spoilt")})
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("celery-kit: messages cannot be signed: ") and said in line


def test_an_expired_certificate_is_not_trusted(signing: Callable[..., Environ]) -> None:
    """Not at start, and not once it has expired in a process that runs."""
    environ = signing(valid=1)
    pem = Path(environ["SECURITY_CERTIFICATE"]).read_text()
    signer = Signer(Keys(*environ.values()), 60)
    until("the certificate expires", Certificate(pem).has_expired, 10)
    with pytest.raises(SecurityError, match="Expired certificate"):
        signer.read(signer.write([1]))
    done = python("from app import app; app.conf.timezone", **environ)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "Expired certificate" in line
