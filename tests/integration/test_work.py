"""The sample work: real pictures, sounds, mails and statistics, from the images that are deployed."""

import json
import wave
from datetime import UTC, datetime
from typing import Any

import docker
import pytest
from celery.exceptions import TimeoutError as ResultTimeout
from PIL import Image

from celery_kit.base.login import header
from celery_kit.operate.stacks.images import image
from testbed.servers.contract import APP, PASSWORD
from testbed.stack import SESSION
from tests.harness.combinations import COMBINATIONS
from tests.harness.containers import LABEL
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell


def test_mail_arrives(cell: Cell) -> None:
    """A mail really arrives."""
    to = f"{cell.combination}@example.com"
    message_id = cell.run("mail.send_email", to, "hi", "it works")
    (mail,) = [message for message in cell.running.stack.messages() if message["id"] == message_id]
    assert (mail["kind"], mail["to"], mail["subject"], mail["text"].strip()) == ("mail", [to], "hi", "it works")
    cell.saw(mail)


def test_sms_arrives(cell: Cell) -> None:
    """An SMS really arrives at the gateway."""
    sms_id = cell.run("mail.send_sms", "+1 555 0100", str(cell.combination))
    assert [m["text"] for m in cell.running.stack.messages() if m["id"] == sms_id] == [str(cell.combination)]


def test_mail_waits_for_its_server(cell: Cell) -> None:
    """Real back-off against a real server: RETRY while it is away, the mail once it is back."""
    client = docker.from_env()
    port = 20_000 + 2 * [str(one) for one in COMBINATIONS].index(str(cell.combination))
    with cell.running.beside("patient", OPTIONS="-Q patient", SMTP_PORT=str(port)):
        app = cell.running.app()  # of its own: see the limit `state_after_get`
        result = app.send_task("mail.send_email", ("a@b.c", "patience"), queue="patient")

        def retried() -> Any:  # state and error of one look: the next try may begin in between
            meta = app.backend.get_task_meta(result.id)
            return meta["result"] if meta["status"] == "RETRY" else None

        error = until("the task is in RETRY", retried)
        assert isinstance(error, OSError)
        cell.saw(f"RETRY: {error}")
        catcher = client.containers.run(  # beside the stack's own, at its address
            image("mail"),
            detach=True,
            labels={LABEL: SESSION},
            network_mode=f"container:{cell.running.stack.project}-mail-1",
            environment={"CATCHER_SMTP_PORT": port, "CATCHER_HTTP_PORT": port + 1, "MAIL_PASSWORD": PASSWORD},
            healthcheck={"test": ["NONE"]},
        )
        try:
            message_id = result.get(timeout=WAIT)
            asked = f"r.Request('http://127.0.0.1:{port + 1}/messages', headers={{'Authorization': '{header(APP, PASSWORD)}'}})"
            look = f"import urllib.request as r; print(r.urlopen({asked}).read().decode())"
            caught = until("the mail is listed", lambda: json.loads(catcher.exec_run(["python", "-c", look]).output))
        finally:
            catcher.remove(force=True)
    assert [mail["id"] for mail in caught] == [message_id]


def test_picture_is_shrunk(cell: Cell) -> None:
    """A real picture in, a real thumbnail out."""
    Image.new("RGB", (640, 320), "teal").save(cell.running.data / "picture.png")
    made = cell.run("media.thumbnail", "picture.png", 64)
    assert made == {"path": "picture.64.jpg", "width": 64, "height": 32}
    with Image.open(cell.running.data / made["path"]) as small:
        assert (small.format, small.size) == ("JPEG", (64, 32))


def test_sound_is_measured(cell: Cell) -> None:
    """A real WAV in, its peaks and duration out."""
    with wave.open(str(cell.running.data / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(b"\x00\x40" * 4_000 + b"\x00\x00" * 4_000)
    assert cell.run("media.waveform", "sound.wav", 2) == {"duration": 1.0, "peaks": [0.5, 0.0]}


def test_statistics_are_kept(cell: Cell) -> None:
    """The day's statistics are sent for from a shell, and can be read back from a file."""
    sent = cell.running.python("celery_kit.operate.look.send", "reports.daily_statistics", "--wait", str(WAIT))
    assert sent.returncode == 0, sent.stderr
    assert "state     SUCCESS" in sent.stdout
    report = json.loads((cell.running.data / "reports" / f"{datetime.now(UTC):%Y-%m-%d}.json").read_text())
    assert report["tasks"]


def test_workflow_runs(cell: Cell) -> None:
    """A chain whose middle is a chord: a picture, a mail to each, a count; its id gives the whole's result."""
    Image.new("RGB", (64, 64)).save(cell.running.data / "mailing.png")
    result = cell.send("workflows.send_mailing", [f"{n}@example.com" for n in range(3)], "mailing.png")
    if cell.limit:
        result.get(timeout=WAIT, propagate=False)
        assert result.state == "FAILURE" and "NotImplementedError" in repr(result.result)
    else:
        assert result.get(timeout=WAIT) == {"picture": "mailing.png", "sent": 3}


def test_result_is_read_elsewhere(cell: Cell) -> None:
    """Another process reads the result by its id."""
    result = cell.send("probes.add", 2, 3)
    assert result.get(timeout=WAIT) == 5
    other = cell.running.python("celery_kit.operate.look.result", result.id, "--json", "--wait", "10")
    if cell.limit:
        assert (other.returncode, other.stdout) == (2, "")
        assert "only to the process that sent the task" in other.stderr and len(other.stderr.splitlines()) == 1
        stranger = cell.running.app().AsyncResult(result.id)
        assert stranger.state == "PENDING"
        with pytest.raises(ResultTimeout):
            stranger.get(timeout=0.5)
        cell.saw(other.stderr.strip())
    else:
        assert other.returncode == 0, other.stderr
        assert (json.loads(other.stdout)["state"], json.loads(other.stdout)["value"]) == ("SUCCESS", 5)


def test_worker_is_pid_1_and_not_root(cell: Cell) -> None:
    """PID 1 of the container is the worker, which gets SIGTERM itself; it is not root."""
    container = cell.running.worker("main").docker
    # The engine may end a quick command's answer before it has passed on what it said.
    until("it says its name", lambda: b"app.worker" in container.exec_run("cat /proc/1/cmdline").output)
    until("it says who it is", lambda: container.exec_run("id -u").output.strip() == b"1000")
