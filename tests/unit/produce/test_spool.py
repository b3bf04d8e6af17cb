"""The spool's files without a broker: whose files it takes, what it reads of them, and that none of them keeps the others."""

import base64
import json
import os
import pickle
import runpy
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import ContentDisallowed, OperationalError
from kombu.utils.uuid import uuid

from celery_kit import Kit
from celery_kit.base.target import ROOT
from celery_kit.produce.spool import TRIES, Spooled
from tests.harness.waiting import until
from tests.security.hostile import anything, flipped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def app(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A producer whose broker is not there."""
    address = {"CELERY_BROKER_URL": "redis://127.0.0.1:1", "CELERY_RESULT_BACKEND": "redis://127.0.0.1:1"}
    for name, value in (address | {"SPOOL": str(folder), "PUBLISH_TIMEOUT": "1"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("celery_kit.produce.spool.PAUSE", 0.05)
    app = Kit(uuid(), set_as_current=False)
    app.config_from_object(SimpleNamespace(**runpy.run_path(str(ROOT / "app/config.py"))))
    yield app
    app.close()


class Sent:
    """Takes what is sent; raises for a task what it is told to."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.errors: dict[str, Exception] = {}

    def __call__(self, call: Any) -> None:
        if error := self.errors.get(call["task_id"]):
            raise error
        self.ids.append(call["task_id"])


def put(spooled: Spooled, *ids: str, **options: Any) -> None:
    for one in ids:
        call = spooled._call("some.task", (one,), {}, None, None, {"task_id": one, **options})
        spooled.spool.put(call, "json")


def forge(folder: Path, name: str, serializer: str, data: bytes) -> Path:
    call = base64.b64encode(data).decode()
    path = folder / f"{name}.task"
    path.write_text(json.dumps({"task": "some.task", "id": name, "type": serializer, "encoding": "binary", "call": call}))
    path.chmod(0o600)
    return path


class Code:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_what_is_read_from_a_disk_is_decoded_only_if_the_app_accepts_it(app: Any, folder: Path, tmp_path: Path) -> None:
    """A file of the spool that names a serializer which the app does not accept runs no code, and is moved aside."""
    sent, trace = Sent(), tmp_path / "ran"
    put(app.spooled, "before")
    forged = forge(folder, "0-forged", "application/x-python-serialize", pickle.dumps(Code(trace)))
    assert list(app.spooled.spool.forward(sent)) == ["before"]
    assert not trace.exists()
    assert not forged.exists() and forged.with_suffix(".bad").exists()


def test_what_the_app_does_not_accept_does_not_get_into_the_spool(app: Any, folder: Path) -> None:
    """Nothing is accepted that could not be read again: its sender gets the error."""
    with pytest.raises(ContentDisallowed):
        app.send_task("some.task", serializer="pickle")
    assert not list(folder.glob("*.task"))


def test_a_spool_is_its_owners_alone(app: Any, folder: Path) -> None:
    """What this process writes others can neither read nor write, whatever its umask."""
    before = os.umask(0)
    try:
        put(app.spooled, "one")
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.task")} == {0o600}


def test_a_folder_that_holds_other_things_keeps_its_mode(app: Any, folder: Path) -> None:
    """What the kit has not made it does not close to others: the system's configuration, say."""
    folder.mkdir(mode=0o755)
    (folder / "passwd").touch()
    with pytest.raises(PermissionError, match="it holds passwd: name a folder of its own"):
        app.send_task("some.task")
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(app: Any, folder: Path, mode: int) -> None:
    """A folder from which files are executed is this user's alone, or is not used."""
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(PermissionError, match=f"others may write to it .mode 0*{mode:o}."):
        app.send_task("some.task")


def test_a_folder_of_another_user_is_refused(app: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that another user may change at any time is not used."""
    folder.mkdir(mode=0o700)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(PermissionError, match=f"it belongs to user {mine}"):
        app.send_task("some.task")


def test_a_folder_that_others_could_only_read_is_taken_and_closed_to_them(app: Any, folder: Path) -> None:
    """An earlier version has made such ones: what stands in there goes on being sent."""
    folder.mkdir(mode=0o755)
    put(app.spooled, "one")
    for path in folder.glob("*.task"):
        path.chmod(0o644)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(app.spooled.spool.forward(Sent())) == ["one"]


def test_a_file_that_is_a_link_or_that_others_may_write_to_is_not_read(app: Any, folder: Path, tmp_path: Path) -> None:
    """A file counts for what its owner wrote only where nobody else could have written it."""
    spool, sent = app.spooled.spool, Sent()
    put(app.spooled, "linked", "shared", "fine")
    linked, shared, _ = (folder / name for name in spool.names())
    linked.rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    shared.chmod(0o666)
    assert list(spool.forward(sent)) == ["fine"]
    assert sorted(path.stem for path in folder.glob("*.bad")) == sorted([linked.stem, shared.stem])


BROKEN = {
    "no JSON": b"\x00 not JSON",
    "empty": b"",
    "another shape": b"[]",
    "parts missing": b"{}",
    "deep": b"[" * 100_000,
    "no call": json.dumps({"id": "x", "type": "application/json", "encoding": "utf-8", "call": "MQ=="}).encode(),
}


def test_a_file_that_cannot_be_moved_aside_does_not_keep_the_others(
    app: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name for that is taken by a folder. One line of log, however often it is tried."""
    put(app.spooled, "one", "two")
    (folder / "0.task").write_bytes(b"no task")
    (folder / "0.task").chmod(0o600)
    (folder / "0.bad").mkdir()
    assert list(app.spooled.spool.forward(Sent())) == ["one", "two"]
    assert list(app.spooled.spool.forward(Sent())) == []
    assert caplog.text.count("it cannot be renamed") == 1


@pytest.mark.parametrize("kind", ["folder", "pipe", "huge"])
def test_what_is_no_file_of_a_task_is_moved_aside(app: Any, folder: Path, kind: str) -> None:
    """A pipe would be waited for, and a huge file would fill the memory."""
    put(app.spooled, "one")
    path = folder / "0.task"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path, 0o600)
    else:
        path.touch(0o600)
        os.truncate(path, 8 * 2**30)  # without a block on the disk
    assert list(app.spooled.spool.forward(Sent())) == ["one"]
    assert app.spooled.spool.bad() == ["0.bad"]


def test_whatever_a_file_holds_the_others_are_sent(app: Any, folder: Path) -> None:
    """A thousand random changes of a file of ours, and of the call in it."""
    random, sent = Random(1), Sent()
    put(app.spooled, "whole")
    (name,) = app.spooled.spool.names()
    record = json.loads((folder / name).read_bytes())
    for number in range(1_000):
        changed = dict(record)
        call = json.loads(base64.b64decode(record["call"]))
        call[random.choice(list(call))] = anything(random)
        content = json.dumps(call).encode()
        changed["call"] = base64.b64encode(flipped(random, content) if number % 2 else content).decode()
        if number % 3 == 0:
            changed[random.choice(list(changed))] = anything(random)
        text = json.dumps(changed).encode()
        path = folder / f"0{number:04}.task"
        path.write_bytes(flipped(random, text) if number % 5 == 0 else text)
        path.chmod(0o600)
    for _ in range(TRIES):
        list(app.spooled.spool.forward(sent))
    assert "whole" in sent.ids and not app.spooled.spool.names()


@pytest.mark.parametrize("text", BROKEN.values(), ids=list(BROKEN))
def test_a_file_that_holds_no_task_does_not_keep_the_others(app: Any, folder: Path, text: bytes) -> None:
    """Whatever a file holds, those after it are sent, in their order, and it is kept aside."""
    spool, sent = app.spooled.spool, Sent()
    (folder / "0.task").write_bytes(text)
    (folder / "0.task").chmod(0o600)
    put(app.spooled, "one", "two")
    spool.forward_in_background(sent)
    until("all are sent", lambda: sent.ids == ["one", "two"])
    until("it is not sending any more", lambda: not spool.sending)
    assert spool.bad() == ["0.bad"] and (folder / "0.bad").read_bytes() == text


def test_a_task_that_cannot_be_sent_does_not_keep_the_others(app: Any) -> None:
    """An error of one task is that task's: the others go past it, and it is moved aside once it has failed often enough."""
    spool, sent = app.spooled.spool, Sent()
    sent.errors["bad"] = RuntimeError("of its own")
    put(app.spooled, "bad", "one", "two")
    spool.forward_in_background(sent)
    until("it is moved aside", spool.bad)
    until("it is not sending any more", lambda: not spool.sending)
    assert sent.ids == ["one", "two"]


def test_what_was_moved_aside_is_sent_when_somebody_asks_for_it(app: Any) -> None:
    """Nothing that was accepted is lost by being moved aside."""
    spool, sent = app.spooled.spool, Sent()
    sent.errors["bad"] = RuntimeError("of its own")
    put(app.spooled, "bad")
    spool.forward_in_background(sent)
    until("it is moved aside", spool.bad)
    assert list(spool.forward(sent)) == []
    sent.errors.clear()
    assert list(spool.forward(sent, again=True)) == ["bad"]
    assert not spool.bad() and not spool.names()


def test_the_thread_survives_whatever_happens_to_it_and_sending_is_true_while_it_lives(
    app: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that others count on ends neither by an error nor unnoticed."""
    spool, sent = app.spooled.spool, Sent()
    alone, calls = spool._alone, []

    def broken() -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise MemoryError
        return alone()

    monkeypatch.setattr(spool, "_alone", broken)
    put(app.spooled, "one")
    spool.forward_in_background(sent)
    until("it is sent", lambda: sent.ids == ["one"])
    until("it is not sending any more", lambda: not spool.sending)

    class Killed(BaseException):
        pass

    sent.errors["two"] = Killed()  # type: ignore[assignment]  # as a green library ends a greenlet
    put(app.spooled, "two")
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    spool.forward_in_background(sent)
    until("it is not sending any more", lambda: not spool.sending)
    sent.errors.clear()
    put(app.spooled, "three")
    spool.forward_in_background(sent)
    until("both are sent", lambda: sent.ids == ["one", "two", "three"])


def test_a_broker_that_is_away_keeps_the_order(app: Any) -> None:
    """An error that says nothing about the task moves nothing aside, however often it comes."""
    spool, sent = app.spooled.spool, Sent()
    put(app.spooled, "one", "two")
    sent.errors["one"] = OperationalError("away")
    for _ in range(20):
        with pytest.raises(OperationalError):
            list(spool.forward(sent))
    sent.errors.clear()
    assert list(spool.forward(sent)) == ["one", "two"]


def test_files_that_were_moved_aside_count_for_the_spools_size(app: Any, folder: Path) -> None:
    """What is kept for somebody to look at is bounded, too."""
    app.spooled.spool.most = 2
    put(app.spooled, "one")
    (folder / "0.bad").touch()
    with pytest.raises(OperationalError, match="is full: 2 tasks"):
        put(app.spooled, "two")
