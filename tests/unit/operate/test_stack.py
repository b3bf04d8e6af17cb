"""What the command line leaves on this machine for the stacks of containers."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_kit.brokers import embedded as broker
from celery_kit.operate.stacks import embedded, passwords, pidfile


@pytest.fixture
def umask() -> Iterator[None]:
    """That of a careful user: what is made is for nobody else, unless it says so itself."""
    before = os.umask(0o077)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.usefixtures("umask")
def test_a_password_is_made_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else can enter it; the user of an image, whom the file alone is handed to, can read the file."""
    file = tmp_path / "own" / "password"
    monkeypatch.setenv("MONITOR_PASSWORD_FILE", str(file))
    assert passwords.monitor_password() == file
    assert (mode(file.parent), mode(file)) == (0o700, 0o644)
    assert len(file.read_text()) > 20
    made = file.read_text()
    assert passwords.monitor_password().read_text() == made


@pytest.mark.parametrize("there", [True, False], ids=["with the file", "without it"])
def test_a_folder_of_the_users_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], there: bool
) -> None:
    """What the kit has not made itself it neither closes nor opens: a temporary folder that all share, say."""
    file = tmp_path / "password"
    tmp_path.chmod(0o1777)
    if there:
        file.write_text("mine")
        file.chmod(0o640)
    monkeypatch.setenv("MONITOR_PASSWORD_FILE", str(file))
    if there:
        assert passwords.monitor_password().read_text() == "mine"
        assert mode(file) == 0o640
    else:
        with pytest.raises(SystemExit):
            passwords.monitor_password()
        (line,) = capsys.readouterr().err.splitlines()
        assert f"MONITOR_PASSWORD_FILE={file} is not there, and others can enter its folder" in line
        assert not file.exists()
    assert tmp_path.stat().st_mode & 0o7777 == 0o1777


def test_a_password_file_that_cannot_be_made_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MONITOR_PASSWORD_FILE", str(tmp_path / "file" / "folder" / "password"))
    with pytest.raises(SystemExit):
        passwords.monitor_password()
    assert "cannot be made: Not a directory" in capsys.readouterr().err


def test_a_worker_beside_an_embedded_stack_consumes_its_queues() -> None:
    about = {"address": "redis://127.0.0.1:1", "backend": "redis", "pool": "solo", "smtp": 2, "http": 3, "queues": "a,b"}
    assert embedded.environment(about)["CELERY_WORKER_QUEUES"] == "a,b"


@pytest.mark.parametrize(
    "text", ["", "5", "[]", "null", "[" * 100_000, '{"pid": "../1", "began": "x", "folder": "y"}', '{"address": 5']
)
def test_whatever_is_in_a_note_of_the_stack_ends_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A note that cannot be read is none."""
    note = tmp_path / "one.pid"
    note.write_text(text)
    monkeypatch.setattr(broker, "STATE", note)
    assert pidfile.read(note) is None and pidfile.running(note) is None
    assert broker.url({}) == broker.NOWHERE


def test_a_pipe_in_place_of_a_note_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.pid")
    assert pidfile.read(tmp_path / "one.pid") is None
