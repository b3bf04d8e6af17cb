"""Heartbeats during a task: of the connections that its thread has opened, and of no other."""

import threading
from typing import Any

import pytest

from celery_kit.pools import solo
from celery_kit.pools.lifeline import Lifeline
from tests.harness.waiting import until


class Connection:
    heartbeat = 0.02  # seconds

    def __init__(self) -> None:
        self.beats = 0

    def send_heartbeat(self) -> None:
        self.beats += 1


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Lifeline:
    line = Lifeline()
    monkeypatch.setattr(solo, "lifeline", line)
    return line


def elsewhere(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_they_go_on_while_a_task_of_solo_runs(line: Lifeline) -> None:
    mine, others, gone = Connection(), Connection(), Connection()
    line.add(mine)
    line.add(gone)
    line.remove(gone)
    elsewhere(lambda: line.add(others))
    solo.Solo().apply_async(lambda: until("it has sent some", lambda: mine.beats >= 3), callback=id)
    assert not (others.beats or gone.beats)
    sent = mine.beats
    with line._turn:  # no round is under way
        assert line._in_a_task is None and mine.beats == sent


def test_a_connection_that_a_task_opens_is_its_own(line: Lifeline) -> None:
    first, second = Connection(), Connection()
    line.add(first)
    solo.Solo().apply_async(lambda: line.add(second), callback=id)
    assert list(line.connections) == [first]


def test_one_that_is_dead_does_not_keep_the_others_from_sending(line: Lifeline) -> None:
    def fail() -> None:
        raise OSError

    dead: Any = Connection()
    dead.send_heartbeat = fail
    alive = Connection()
    line.add(dead)
    line.add(alive)
    solo.Solo().apply_async(lambda: until("it has sent some", lambda: alive.beats >= 2), callback=id)


def test_without_such_connections_no_thread_is_started(line: Lifeline) -> None:
    solo.Solo().apply_async(lambda: None, callback=id)
    assert line._thread is None
