"""SPOOL: a task that is accepted without a broker is sent when there is one, with its id, even if its producer was killed."""

import signal
from pathlib import Path

import pytest
from kombu.exceptions import OperationalError

from celery_kit.produce.spool import SpoolFullError
from tests.producer.conftest import Broker, Producer, waits
from tests.producer.test_broker_away import SEND

#: Sends numbered tasks, and prints the id of each when it is accepted.
SENDER = """
from app import app
for number in range(2_000):
    print(app.send_task("some.task", (number,), queue="{queue}", task_id=f"{{number:05d}}").id, flush=True)
"""


def test_a_task_is_accepted_while_the_broker_is_away_and_forwarded_by_a_command(
    broker: Broker, producer: Producer, spool: Path
) -> None:
    with broker.stopped():
        code, ids, err = producer.run(*SEND, SPOOL=str(spool))
        assert (code, len(ids)) == (0, 1)
        assert err[-1] == f"celery-kit: the broker is unavailable; tasks wait in {spool}: 'make forward' sends them"
        code, out, err = producer.run("forward", SPOOL=str(spool))
        assert (code, out) == (2, []) and "cannot be reached" in err[-1]
    assert producer.run("forward", SPOOL=str(spool))[:2] == (0, ids)
    assert producer.run("forward", SPOOL=str(spool))[:2] == (0, [])
    assert ids[0] in producer.received(producer.app().conf.task_default_queue)


def test_the_process_that_spooled_forwards_in_the_background_and_keeps_the_order(
    broker: Broker, producer: Producer, spool: Path, queue: str
) -> None:
    app = producer.app(SPOOL=str(spool))
    sent = [app.send_task("some.task", queue=queue).id]
    with broker.frozen():
        sent += [app.send_task("some.task", (number,), queue=queue).id for number in range(20)]
    sent += [app.send_task("some.task", queue=queue).id for _ in range(5)]
    waits("the spool is empty", lambda: not list(spool.glob("*.task")))
    received = producer.received(queue)
    assert sorted(set(received)) == sorted(sent)
    assert list(dict.fromkeys(received[-25:])) == sent[1:] or list(dict.fromkeys(received)) == sent
    app.close()


def test_what_a_killed_producer_had_accepted_is_sent_in_its_order(
    broker: Broker, producer: Producer, spool: Path, queue: str
) -> None:
    """SIGKILL to the producer while it sends, and to the forwarding command while it forwards."""
    accepted: list[str] = []
    with broker.stopped(), producer.python("-c", SENDER.format(queue=queue), SPOOL=str(spool)) as sender:
        assert sender.stdout
        for line in sender.stdout:
            accepted.append(line.strip())
            if len(accepted) == 150:
                sender.send_signal(signal.SIGKILL)
    assert len(accepted) >= 150
    with producer.python("-m", "celery_kit.operate.look.send", "forward", SPOOL=str(spool)) as forwarder:
        assert forwarder.stdout
        for number, _ in enumerate(forwarder.stdout):
            if number == 20:
                forwarder.send_signal(signal.SIGKILL)
    code, _, _ = producer.run("forward", SPOOL=str(spool))
    assert code == 0 and not list(spool.glob("*.task"))
    received = producer.received(queue)
    assert set(accepted) <= set(received)
    assert list(dict.fromkeys(received)) == sorted(set(received)), "out of order"


def test_a_full_spool_refuses(broker: Broker, producer: Producer, spool: Path, queue: str) -> None:
    app = producer.app(SPOOL=str(spool), SPOOL_MOST="2")
    with broker.stopped():
        accepted = [app.send_task("some.task", queue=queue).id for _ in range(2)]
        with pytest.raises(SpoolFullError, match="is full: 2 tasks"):
            app.send_task("some.task", queue=queue)
    waits("the spool is empty", lambda: not list(spool.glob("*.task")))
    assert sorted(producer.received(queue)) == sorted(accepted)
    app.close()


def test_a_countdown_counts_from_when_the_task_was_accepted(
    broker: Broker, producer: Producer, spool: Path, queue: str
) -> None:
    app = producer.app(SPOOL=str(spool))
    with broker.stopped():
        later = app.send_task("some.task", queue=queue, countdown=0.5, expires=3_600, priority=7, headers={"mine": "yes"}).id
    waits("the spool is empty", lambda: not list(spool.glob("*.task")))
    waits("the task is in its queue", lambda: later in producer.received(queue))
    app.close()


def test_without_a_spool_nothing_is_accepted(broker: Broker, producer: Producer, queue: str) -> None:
    app = producer.app()
    with broker.stopped(), pytest.raises(OperationalError):
        app.send_task("some.task", queue=queue)
    assert producer.received(queue) == []
    app.close()


def test_a_spool_that_cannot_be_written_is_an_error_and_accepts_nothing(
    broker: Broker, producer: Producer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    app = producer.app(SPOOL=str(tmp_path / "file"))
    with pytest.raises(FileExistsError):
        app.send_task("some.task")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    app.close()
    code, out, err = producer.run(*SEND, SPOOL=str(tmp_path / "file"))
    assert (code, out, err) == (2, [], [f"celery-kit: SPOOL={tmp_path / 'file'} cannot be used: File exists"])
