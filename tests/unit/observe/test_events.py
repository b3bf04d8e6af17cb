"""Task events in groups, on kombu's transport in memory."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from kombu.asynchronous.timer import Timer

from celery_kit import Kit
from celery_kit.observe import events
from celery_kit.observe.events import MOST, Dispatcher

Sent = list[Any]


@pytest.fixture
def app() -> Iterator[Celery]:
    with Kit("events", broker="memory://", set_as_current=False) as app:
        yield app


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """What dispatchers publish: (event or list of events, routing key)."""
    found: Sent = []
    monkeypatch.setattr(
        Dispatcher, "_publish", lambda self, event, producer, routing_key, **_: found.append((event, routing_key))
    )
    return found


@pytest.fixture
def dispatcher(app: Celery, timer: Timer, sent: Sent) -> Any:
    dispatcher = app.events.Dispatcher(app.connection(), hostname="one@here")
    dispatcher.collect(timer)
    return dispatcher


def entries(timer: Timer) -> list[Callable[[], None]]:
    return [one.entry for one in timer.queue]


def test_events_of_tasks_wait_for_one_timer_and_others_do_not(dispatcher: Any, timer: Timer, sent: Sent) -> None:
    dispatcher.send("task-received", uuid="1", name="add")
    dispatcher.send("task-started", uuid="1")
    dispatcher.send("worker-heartbeat", freq=2)
    assert [key for _, key in sent] == ["worker.heartbeat"]
    (one,) = entries(timer)
    one()
    batch, key = sent[-1]
    assert key == "task.multi" and [event["type"] for event in batch] == ["task-received", "task-started"]
    dispatcher.send("task-succeeded", uuid="1")
    assert len(entries(timer)) == 2  # the former has run


def test_an_event_is_as_celery_makes_it(app: Celery, dispatcher: Any, timer: Timer, sent: Sent) -> None:
    celerys = vars(events)["EventDispatcher"].send
    celerys(dispatcher, "task-retried", uuid="1", exception="no")
    dispatcher.send("task-retried", uuid="1", exception="no")
    dispatcher.flush()
    theirs, ours = sent[-1][0]
    assert theirs.keys() == ours.keys()
    differ = {name for name in theirs if theirs[name] != ours[name]}
    assert differ <= {"clock", "timestamp"} and theirs["clock"] < ours["clock"]
    assert isinstance(ours["timestamp"], float)


def test_who_asks_for_more_gets_celerys_own(dispatcher: Any, sent: Sent) -> None:
    dispatcher.send("task-sent", uuid="1", timestamp=5.0)
    dispatcher.send("task-received", blind=True, uuid="1")
    dispatcher.flush()
    assert [event.get("timestamp") == 5.0 for event in sent[-1][0]] == [True, False]
    assert not any("blind" in event for event in sent[-1][0])


def test_many_do_not_wait(dispatcher: Any, sent: Sent) -> None:
    for number in range(MOST + 1):
        dispatcher.send("task-started", uuid=str(number))
    assert [len(batch) for batch, _ in sent] == [MOST]


def test_what_is_added_meanwhile_is_sent_next(dispatcher: Any, monkeypatch: pytest.MonkeyPatch, sent: Sent) -> None:
    """By a thread of the pool, while the connection is written: Celery 5.6 deletes it."""

    def publish(self: Dispatcher, batch: object, producer: object, key: str) -> None:
        sent.append(list(batch) if isinstance(batch, list) else batch)
        if len(sent) == 1:
            self.send("task-succeeded", uuid="1")

    monkeypatch.setattr(Dispatcher, "_publish", publish)
    dispatcher.send("task-started", uuid="1")
    dispatcher.flush()
    dispatcher.flush()
    assert [[event["type"] for event in batch] for batch in sent] == [["task-started"], ["task-succeeded"]]


def test_they_wait_for_the_next_connection(dispatcher: Any, sent: Sent) -> None:
    dispatcher.send("task-started", uuid="1")
    dispatcher.close()
    dispatcher.flush()
    assert not sent
    dispatcher.enable()
    dispatcher.flush()
    assert len(sent) == 1


def test_nothing_is_collected_that_nobody_wants(dispatcher: Any, sent: Sent) -> None:
    dispatcher.groups = {"worker"}
    dispatcher.send("task-started", uuid="1")
    dispatcher.groups, dispatcher.enabled = set(), False
    dispatcher.send("task-started", uuid="1")
    dispatcher.flush()
    assert not sent
