"""The certificates of stacks with SECURE=1: what is made, what is refused, and what a server's URL then says."""

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from celery_kit.brokers.contract import tls
from celery_kit.operate.stacks import certificates
from celery_kit.profile import Profile
from tests.harness.certificates import Authority, certificate

Refused = Callable[[], str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(certificates, "FOLDER", tmp_path / "kit" / "tls")
    for name in ("SECURE", "TLS_FOLDER", *certificates.OWN):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "kit" / "tls"


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """What was refused last, in its one line."""

    def line() -> str:
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith("celery-kit: ")
        return said

    return line


def shaken(folder: Path, name: str, trusted: str = "client/ca.pem") -> str:
    """What a client says of the server's certificate; empty if it accepts it."""
    try:
        certificates._shake_hands(
            str(folder / trusted), str(folder / "server/server.pem"), str(folder / "server/server.pem"), name
        )
    except ssl.SSLError as error:
        return str(error)
    return ""


def test_what_is_missing_is_made_once(folder: Path) -> None:
    made = certificates.ensure()
    assert made.folder == folder and not made.own
    assert timedelta(days=390) < made.until - datetime.now(UTC) < timedelta(days=398)
    assert not any(shaken(folder, name) for name in ("broker", "results", "localhost", "127.0.0.1"))
    assert "Hostname mismatch" in shaken(folder, "elsewhere")
    before = (folder / "server/server.pem").read_bytes()
    assert certificates.ensure() == made and (folder / "server/server.pem").read_bytes() == before


def test_other_users_cannot_enter_and_containers_can(folder: Path) -> None:
    """The folders are mounted, so that the outer one does not hinder the users of containers."""
    before = os.umask(0o077)
    try:
        certificates.ensure()
    finally:
        os.umask(before)
    modes = {path.relative_to(folder): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert modes[Path()] == 0o700 and modes[Path("ca.key")] == 0o600
    assert {modes[Path(name)] for name in certificates.FILES} == {0o755}
    assert {mode for path, mode in modes.items() if path.parent.name} == {0o644}


def test_what_ends_soon_is_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "OTHERS", certificates.EARLY - 1)
    first = certificates.ensure()
    monkeypatch.setattr(certificates, "OTHERS", 397)
    assert certificates.ensure().until > first.until + timedelta(days=300)


def test_a_new_authority_and_the_former_are_trusted_for_a_while(folder: Path) -> None:
    certificates.ensure()
    before = folder / "before"
    (folder / "client").rename(before)
    certificates.renew()
    assert not shaken(folder, "broker", "before/ca.pem")  # a new certificate, of the same authority
    certificates.renew(authority=True)
    assert "CERTIFICATE_VERIFY_FAILED" in shaken(folder, "broker", "before/ca.pem")
    assert not shaken(folder, "broker")
    assert (before / "ca.pem").read_text().strip() in (folder / "client/ca.pem").read_text()
    certificates.renew()
    assert (before / "ca.pem").read_text().strip() not in (folder / "client/ca.pem").read_text()


def own(folder: Path, authority: Authority, **options: object) -> dict[str, str]:
    """The variables for files of the user's own."""
    folder.mkdir(exist_ok=True)
    key, certificate = authority.signs(**options)  # type: ignore[arg-type]
    files = {"TLS_CA": authority.pem, "TLS_CERT": certificate, "TLS_KEY": key}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return {name: str(folder / name) for name in files}


def test_files_of_the_users_own_are_taken(tmp_path: Path, folder: Path) -> None:
    made = certificates.ensure(own(tmp_path, Authority(), names=("broker", "results")))
    assert made.own and not shaken(folder, "results")
    taken = (folder / "server/server.pem").read_bytes()
    again = certificates.renew(environ=own(tmp_path, Authority(), names=("broker", "results")))
    assert again.own and (folder / "server/server.pem").read_bytes() != taken and not shaken(folder, "broker")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"names": ("broker",)}, "cannot serve as a certificate for results: "),
        ({"names": ("elsewhere",)}, "Hostname mismatch, certificate is not valid for 'broker'"),
        ({"names": ("broker", "results"), "days": -1}, "certificate has expired"),
    ],
    ids=["one name is missing", "another name", "expired"],
)
def test_a_certificate_that_clients_would_refuse_is_refused(
    tmp_path: Path, folder: Path, refused: Refused, options: dict[str, object], said: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        certificates.ensure(own(tmp_path, Authority(), **options))
    assert ended.value.code == 2 and said in refused()
    assert not (folder / "server/server.pem").exists()


def test_files_that_do_not_fit_are_refused(tmp_path: Path, refused: Refused) -> None:
    mine = own(tmp_path, Authority(), names=("broker", "results"))
    other = own(tmp_path / "other", Authority(), names=("broker", "results"))
    (tmp_path / "other" / "TLS_KEY").write_bytes(certificate("another")[0])
    cases = {
        "unable to get local issuer certificate": {**mine, "TLS_CA": other["TLS_CA"]},
        "KEY_VALUES_MISMATCH": {**mine, "TLS_KEY": other["TLS_KEY"]},
        "TLS_CERT and TLS_KEY missing: ": {"TLS_CA": mine["TLS_CA"]},
        "TLS_KEY=/no/such/file cannot be read: No such file": {**mine, "TLS_KEY": "/no/such/file"},
        "cannot serve as a certificate for broker: ": {**mine, "TLS_CERT": __file__},
    }
    for said, given in cases.items():
        with pytest.raises(SystemExit):
            certificates.ensure(given)
        assert said in refused()


def test_both_sides_of_ones_own_need_a_clients_file_too(tmp_path: Path, refused: Refused) -> None:
    given = own(tmp_path, Authority(), names=("broker", "results"))
    assert certificates.variables(given) == {}
    assert certificates.variables({**given, "SECURE": "1"}) == {"CERTIFICATES": str(certificates.FOLDER)}
    with pytest.raises(SystemExit):
        certificates.variables({**given, "SECURE": "mutual"})


def test_what_the_urls_say(folder: Path, refused: Refused) -> None:
    assert tls({}) == ""
    with pytest.raises(SystemExit):
        tls({"SECURE": "yes"})
    assert "SECURE=yes is not known; allowed: 1, mutual" in refused()
    with pytest.raises(SystemExit):
        tls({"SECURE": "1", "TLS_FOLDER": str(folder)})
    assert f"SECURE=1 needs {folder}/ca.pem, which is not there" in refused()
    certificates.ensure()
    client = folder / "client"
    for broker, begins in (("redis", "rediss://broker:6379/0?"), ("rabbitmq", "amqps://kit:kit@broker:5672/kit?")):
        environ = {"BROKER": broker, "SECURE": "mutual", "TLS_FOLDER": str(client)}
        profile = Profile.from_environ(environ)
        assert profile.broker_url.startswith(begins) and profile.result_backend.startswith("rediss://results:6379/1?")
        for url in (profile.broker_url, profile.result_backend):
            assert f"ssl_certfile={client}/client.pem" in url and "ssl_cert_reqs=required" in url
