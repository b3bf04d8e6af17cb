"""The main job, on every combination: send, run, look up, from the images that are deployed."""

import json
import wave
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.exceptions import TimeoutError as ResultTimeout
from PIL import Image

from tests.integration.conftest import Running
from tests.matrix import COMBINATIONS, parameters
from tests.wait import until

WAIT = 60  # seconds; a deadline, not an expectation


def send(app: Celery, task: str, *args: Any, **options: Any) -> Any:
    return app.send_task(task, args, **options)


def test_a_mail_really_arrives(running: Running, app: Celery) -> None:
    to = f"{running.combination}@example.com"
    message_id = send(app, "mail.send_email", to, "hi", "it works").get(timeout=WAIT)
    mail = [message for message in running.stack.messages() if message["id"] == message_id]
    assert [(m["kind"], m["to"], m["subject"], m["text"].strip()) for m in mail] == [("mail", [to], "hi", "it works")]


def test_an_sms_really_arrives(running: Running, app: Celery) -> None:
    sms_id = send(app, "mail.send_sms", "+1 555 0100", str(running.combination)).get(timeout=WAIT)
    assert [m["text"] for m in running.stack.messages() if m["id"] == sms_id] == [str(running.combination)]


def test_a_picture_is_shrunk(running: Running, app: Celery) -> None:
    Image.new("RGB", (640, 320), "teal").save(running.data / "picture.png")
    made = send(app, "media.thumbnail", "picture.png", 64).get(timeout=WAIT)
    assert made == {"path": "picture.64.jpg", "width": 64, "height": 32}
    with Image.open(running.data / made["path"]) as small:
        assert (small.format, small.size) == ("JPEG", (64, 32))


def test_a_sound_is_measured(running: Running, app: Celery) -> None:
    with wave.open(str(running.data / "sound.wav"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8_000)
        sound.writeframes(b"\x00\x40" * 4_000 + b"\x00\x00" * 4_000)
    measured = send(app, "media.waveform", "sound.wav", 2).get(timeout=WAIT)
    assert measured == {"duration": 1.0, "peaks": [0.5, 0.0]}


def test_another_process_reads_the_result_by_its_id(running: Running, app: Celery) -> None:
    """Or, where the backend answers the sender alone, another process sees PENDING and the command line says why."""
    result = send(app, "probes.add", 2, 3)
    assert result.get(timeout=WAIT) == 5
    other = running.python("app.results", result.id, "--json", "--wait", "10")
    if running.combination.backend.read_elsewhere:
        assert other.returncode == 0, other.stderr
        assert (json.loads(other.stdout)["state"], json.loads(other.stdout)["value"]) == ("SUCCESS", 5)
    else:
        assert (other.returncode, other.stdout) == (2, "")
        assert "only to the process that sent the task" in other.stderr and len(other.stderr.splitlines()) == 1
        stranger = running.app().AsyncResult(result.id)
        assert stranger.state == "PENDING"
        with pytest.raises(ResultTimeout):
            stranger.get(timeout=0.5)


def test_a_task_is_sent_from_the_shell(running: Running) -> None:
    sent = running.python("app.producer", "reports.daily_statistics", "--wait", str(WAIT))
    assert sent.returncode == 0, sent.stderr
    assert "state     SUCCESS" in sent.stdout
    assert (running.data / "reports" / f"{datetime.now(UTC):%Y-%m-%d}.json").exists()


def test_a_result_can_be_forgotten(running: Running, app: Celery) -> None:
    result = send(app, "probes.add", 1, 1)
    assert result.get(timeout=WAIT) == 2
    result.forget()
    assert app.AsyncResult(result.id).state == "PENDING"
    assert running.app().AsyncResult(result.id).state == "PENDING"


def test_a_failure_comes_back_with_its_error_and_traceback(app: Celery) -> None:
    result = send(app, "probes.fail", "on purpose")
    result.get(timeout=WAIT, propagate=False)
    assert result.state == "FAILURE"
    assert (type(result.result).__name__, str(result.result)) == ("ProbeError", "on purpose")
    assert "raise ProbeError(text)" in result.traceback


def test_a_task_is_tried_again(app: Celery) -> None:
    assert send(app, "probes.succeed_at_attempt", 2).get(timeout=WAIT) == 2


def test_a_task_that_is_tried_too_often_fails(app: Celery) -> None:
    result = send(app, "probes.succeed_at_attempt", 9)
    result.get(timeout=WAIT, propagate=False)
    assert (result.state, str(result.result)) == ("FAILURE", "not yet")


def test_a_group_gives_every_result(app: Celery) -> None:
    with app.connection_for_write():
        result = group(app.signature("probes.add", (n, n)) for n in range(10)).apply_async()
    assert result.get(timeout=WAIT) == [2 * n for n in range(10)]


def test_a_chord_gives_its_sum_or_celerys_documented_error(running: Running, app: Celery) -> None:
    header = [app.signature("probes.add", (n, n)) for n in range(5)]
    work = chord(header, app.signature("probes.total"), app=app)
    if running.combination.backend.chords:
        assert work.apply_async().get(timeout=WAIT) == 20
    else:
        with pytest.raises(NotImplementedError, match=r"rpc"):
            work.apply_async()


def test_a_chain_hands_its_results_on(app: Celery) -> None:
    first = app.signature("probes.add", (1, 2))
    assert (first | app.signature("probes.add", (10,))).apply_async().get(timeout=WAIT) == 13


def test_a_task_with_an_eta_runs_then_and_blocks_nobody(app: Celery) -> None:
    """On RabbitMQ 4 an ETA on a classic queue would hold back whatever follows (kombu #2481)."""
    eta = datetime.now(UTC) + timedelta(seconds=3)
    late = send(app, "probes.add", 1, 1, eta=eta)
    assert send(app, "probes.add", 2, 2).get(timeout=WAIT) == 4
    assert late.get(timeout=WAIT) == 2
    assert datetime.now(UTC) >= eta, "the task ran before its time"


def test_a_short_delay_is_a_delay(app: Celery) -> None:
    """Celery 5.7.0 cannot send it where the broker delays tasks itself: app/fixes/short_delays.py."""
    assert send(app, "probes.add", 1, 1, countdown=0.5).get(timeout=WAIT) == 2
    assert send(app, "probes.add", 1, 2, eta=datetime.now(UTC) + timedelta(seconds=0.9)).get(timeout=WAIT) == 3


def test_sockets_are_patched_where_the_pool_needs_it(running: Running, app: Celery) -> None:
    module = send(app, "probes.socket_module").get(timeout=WAIT)
    pool = running.combination.pool
    assert module.partition(".")[0] == (pool.name if pool.sockets_patched else "socket")


def test_the_worker_runs_as_pid_1_and_not_as_root(running: Running) -> None:
    container = running.worker.get_wrapped_container()
    assert b"celery" in container.exec_run("cat /proc/1/cmdline").output
    assert container.exec_run("id -u").output.strip() == b"1000"


@pytest.mark.parametrize("combination", parameters([one for one in COMBINATIONS if one.backend.read_elsewhere]), indirect=True)
def test_mail_waits_for_a_server_that_is_away(running: Running, app: Celery) -> None:
    """Real back-off against a real server: RETRY while it is down, and the mail once it is back."""
    running.stack.run("stop", "mail")
    try:
        result = send(app, "mail.send_email", f"{running.combination}@example.com", "patience")
        until("the task is in RETRY", lambda: result.state == "RETRY")
        assert isinstance(result.result, OSError)
    finally:
        running.stack.run("start", "mail")
    assert result.get(timeout=WAIT) in [message["id"] for message in running.stack.messages()]
