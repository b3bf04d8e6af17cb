"""A signature covers what decides: each change of it is refused. Keys are read again when their files change."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kombu
import pytest
from celery.exceptions import SecurityError
from celery.security.certificate import Certificate, FSCertStore
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer

from celery_kit.base import keys as module
from celery_kit.base.keys import Keys
from celery_kit.base.messages import CONTROL, EVENT, SIGNATURE
from celery_kit.base.signing import Signer
from tests.harness.certificates import certificate

Message: Any = kombu.Message  # its stub knows text bodies alone
BODY = b'[[1], {}, {"callbacks": null, "errbacks": null, "chain": null, "chord": null}]'
HEADERS: dict[str, Any] = {
    "lang": "py", "task": "reports.total", "id": "one", "root_id": "root", "parent_id": "parent", "group": "group",
    "group_index": 1, "eta": "2030-01-01T00:00:00+00:00", "expires": "2031-01-01T00:00:00+00:00", "retries": 1,
    "timelimit": [10, 5], "shadow": None, "argsrepr": "(1,)", "kwargsrepr": "{}", "origin": "host", "ignore_result": False,
    "stamps": {"a": ["b"]}, "stamped_headers": ["a"], "sent": 1234.567, "correlation": "order-7",
}  # fmt: skip
PROPERTIES = {"reply_to": "me", "correlation_id": "one", "priority": 3, "delivery_mode": 2}


def files(folder: Path, name: str = "test", kind: str = "rsa") -> tuple[str, str, str]:
    """A key, its certificate, and the folder that it is trusted by."""
    key, made = certificate(name, kind=kind)
    (folder / "store").mkdir(exist_ok=True)
    (folder / "key").write_bytes(key)
    (folder / "certificate").write_bytes(made)
    (folder / "store" / f"{name}.pem").write_bytes(made)
    return str(folder / "key"), str(folder / "certificate"), str(folder / "store")


@pytest.fixture(params=["rsa", "ed25519"])
def signer(request: pytest.FixtureRequest, tmp_path: Path) -> Signer:
    return Signer(Keys(*files(tmp_path, kind=request.param)), 60)


def message(signer: Signer, /, **changes: Any) -> Any:
    """A signed message with some of its parts changed afterwards. A header of None is removed."""
    headers = signer.headers(HEADERS, PROPERTIES, BODY, "application/json", "utf-8")
    parts: dict[str, Any] = {"body": BODY, "content_type": "application/json", "content_encoding": "utf-8"}
    parts |= {name: changes.pop(name) for name in list(changes) if name in parts}
    properties = PROPERTIES | {name: changes.pop(name) for name in list(changes) if name in PROPERTIES}
    return Message(headers=headers | changes, properties=properties, **parts)


def test_a_signed_message_is_read_as_each_transport_delivers_it(signer: Signer) -> None:
    """What a transport leaves out, or makes a text, and what brokers and the kit add, does not matter."""
    assert abs(signer.task(message(signer)).seconds - time.time()) < signer.window
    assert signer.task(message(signer, body=BODY.decode()))
    assert signer.task(message(signer, timelimit=(10, 5), priority=0, delivery_mode=1))
    added = {"x-delivery-count": 1, "x-death": [{"count": 1}], "x-first-death-queue": "q", "redelivered": True}
    assert signer.task(message(signer, **added))
    bare = message(signer)
    del bare.headers["shadow"]
    assert signer.task(bare)
    first = signer.headers(HEADERS | {"retries": 0}, PROPERTIES, BODY, "application/json", "utf-8")
    del first["retries"]
    assert signer.task(Message(BODY, None, "application/json", "utf-8", {}, PROPERTIES, first))


CHANGES: list[dict[str, Any]] = [
    *({name: value} for name, value in HEADERS.items() if name != "shadow" for value in (None, "other")),
    {"shadow": "other.task"}, {"retries": 0}, {"timelimit": [None, None]}, {"ignore_result": True},
    {"chord": {"task": "x"}}, {"callbacks": [{"task": "x"}]}, {"errbacks": [{"task": "x"}]}, {"chain": [{"task": "x"}]},
    {"is_eager": True}, {"x-own": "new"}, {"reply_to": "other"}, {"correlation_id": "other"},
    {"content_type": "application/x-python-serialize"}, {"content_encoding": "latin-1"}, {"body": BODY.replace(b"1", b"2")},
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_each_change_of_what_decides_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    signer = Signer(Keys(*files(tmp_path)), 60)
    with pytest.raises(SecurityError, match="Bad signature"):
        signer.task(message(signer, **change))


def test_a_message_without_a_signature_or_with_another_is_refused(signer: Signer) -> None:
    for line, said in (
        ("", "it is not signed"),
        (None, "it is not signed"),
        ("x", "another form"),
        ("now 1 YQ== YQ==", "another form"),
        ("1 1 YQ== YQ", "another form"),
        ("1 1 YQ== YQ==", "Unknown certificate: 'a'"),
    ):
        with pytest.raises(SecurityError, match=said):
            signer.task(message(signer, **{SIGNATURE: line}))


def test_a_signature_for_one_purpose_is_none_for_another(signer: Signer) -> None:
    """A signed event is no command, and neither is what a result or a task has."""
    command: dict[str, Any] = {"method": "shutdown", "arguments": {}, "destination": None}
    sealed = signer.seal(CONTROL)(command)
    assert signer.unseal(CONTROL)(sealed) == command
    for other in (signer.seal(EVENT)(command), signer.write(command), sealed.replace("shutdown", "ping"), "{}", "\n"):
        with pytest.raises(SecurityError):
            signer.unseal(CONTROL)(other)
    with pytest.raises(SecurityError):
        signer.unseal(EVENT)(sealed)


def test_a_command_is_valid_for_seconds(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed, now = signer.seal(EVENT)([{"type": "worker-heartbeat"}]), time.time()
    for apart in (-20, 0, 20):
        monkeypatch.setattr(time, "time", lambda apart=apart: now + apart)
        assert signer.unseal(EVENT)(sealed)
    for apart in (-40, 40):
        monkeypatch.setattr(time, "time", lambda apart=apart: now + apart)
        with pytest.raises(SecurityError, match="s ago, 30 at most"):
            signer.unseal(EVENT)(sealed)


def test_the_window_of_a_delayed_task_begins_when_it_is_due(signer: Signer) -> None:
    stamp = signer.task(message(signer))
    assert signer.until(stamp, HEADERS) == 1_893_456_000 + 60  # 2030-01-01, and the window
    assert signer.until(stamp, {}) == stamp.seconds + 60
    assert signer.until(stamp, {"eta": "soon"}) == stamp.seconds + 60


def test_what_is_sent_again_is_signed_again_if_it_was_signed(signer: Signer) -> None:
    sent = message(signer)
    again = Message(BODY, None, "application/json", "utf-8", {}, PROPERTIES, signer.renewed(sent))
    assert signer.task(again).nonce != signer.task(sent).nonce
    forged = message(signer, task="other.task")
    assert signer.renewed(forged) == forged.headers


def test_results_have_the_form_of_celerys_serializer(tmp_path: Path) -> None:
    """Each reads what the other has signed."""
    key, made, store = files(tmp_path)
    signer = Signer(Keys(key, made, store), 60)
    celerys: Any = SecureSerializer(PrivateKey(Path(key).read_bytes()), Certificate(Path(made).read_text()), FSCertStore(store))
    assert celerys.deserialize(signer.write({"ü": [1]})) == {"ü": [1]}
    assert signer.read(celerys.serialize({"ü": [1]})) == {"ü": [1]}
    for wrong in ("", "x", b"\xff", celerys.serialize([1])[:-8]):
        with pytest.raises(SecurityError):
            signer.read(wrong)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the files looked at each time."""
    monkeypatch.setattr(module, "EVERY", 0.0)
    monkeypatch.setattr(module, "SOONER", 0.0)


@pytest.mark.usefixtures("looks")
def test_keys_are_read_again_when_their_files_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signer = Signer(Keys(*files(tmp_path, "first")), 60)
    before = message(signer)
    files(tmp_path, "second")
    after = message(signer)
    assert [signer.task(one).signer.split()[0] for one in (before, after)] == ["first", "second"]
    (tmp_path / "store" / "first.pem").unlink()
    with pytest.raises(SecurityError, match="Unknown certificate: 'first"):
        signer.task(before)
    assert signer.task(after)
    assert [one.levelno for one in caplog.records if "read again" in one.message] == [logging.WARNING] * 2


@pytest.mark.usefixtures("looks")
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "key").write_bytes(certificate("other")[0]), "not of the private key"),
        (lambda folder: (folder / "key").unlink(), "No such file"),
        (lambda folder: (folder / "store" / "x.pem").write_text("half a file"), "Invalid certificate"),
    ],
)
def test_files_that_are_being_replaced_leave_the_earlier_keys(
    tmp_path: Path, spoil: Callable[[Path], object], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    signer = Signer(Keys(*files(tmp_path)), 60)
    spoil(tmp_path)
    for _ in range(3):
        assert signer.task(message(signer))
    (line,) = [one.message for one in caplog.records]
    assert line.startswith("keys of signed messages are not read again") and said in line


@pytest.mark.usefixtures("looks")
def test_an_expired_certificate_in_a_changed_store_is_left_out(tmp_path: Path) -> None:
    signer = Signer(Keys(*files(tmp_path)), 60)
    (tmp_path / "store" / "old.pem").write_bytes(certificate("old", -1)[1])
    assert signer.task(message(signer))
    with pytest.raises(SecurityError, match="Expired certificate"):
        Keys(str(tmp_path / "key"), str(tmp_path / "certificate"), str(tmp_path / "store"))


def test_a_certificate_of_another_key_is_refused(tmp_path: Path) -> None:
    _, made, store = files(tmp_path)
    (tmp_path / "key").write_bytes(certificate("other")[0])
    with pytest.raises(SecurityError, match="not of the private key"):
        Keys(str(tmp_path / "key"), made, store)
