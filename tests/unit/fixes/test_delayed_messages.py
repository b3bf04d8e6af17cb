"""Native delayed delivery: fixes delayed_start, short_delays and retry_queue."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.worker.consumer.delayed_delivery import DelayedDelivery
from kombu import Exchange, Queue
from kombu.transport.native_delayed_delivery import calculate_routing_key

from celery_kit.fixes import delayed_messages
from celery_kit.fixes.delayed_messages import EXCHANGE, named, rounded_up
from celery_kit.observe.health import Heartbeat
from tests.harness.waiting import until

#: Celery's own, taken while no test has made a worker of the kit yet, which patches them.
START, BIND = DelayedDelivery.start, vars(DelayedDelivery)["_bind_queues"]


class Slow(DelayedDelivery):
    """Celery's step, with a broker that answers when `answers` is set."""

    def __init__(self) -> None:
        self.answers, self.thread = threading.Event(), 0

    def _setup_delayed_delivery(self, *_: Any) -> None:
        self.thread = threading.get_ident()
        self.answers.wait(10)


def consumer(queue_type: str = "quorum") -> Any:
    conf = SimpleNamespace(broker_url="amqp://", broker_native_delayed_delivery_queue_type=queue_type)
    return SimpleNamespace(app=SimpleNamespace(conf=conf), add_task_queue=lambda *_: None)


@pytest.fixture
def patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DelayedDelivery, "celerys_start", START, raising=False)
    monkeypatch.setattr(DelayedDelivery, "start", delayed_messages._start)


@pytest.mark.usefixtures("patched")
def test_a_worker_starts_without_waiting_for_it_and_knows_when_it_is_there() -> None:
    step, worker = Slow(), consumer()
    step.start(worker)
    assert delayed_messages.makes(worker)
    step.answers.set()
    until("it is there", lambda: not delayed_messages.makes(worker))
    assert step.thread != threading.get_ident()


@pytest.mark.usefixtures("patched")
def test_settings_that_are_wrong_still_end_the_start() -> None:
    with pytest.raises(ValueError, match="neither"):
        Slow().start(consumer("neither"))


def test_a_queue_that_a_task_names_meanwhile_does_not_disturb_it(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("some", set_as_current=False)
    app.conf.task_queues = [Queue("one"), Queue("two")]
    bound: list[str] = []

    def bind(_: Any, queue: Any) -> None:
        bound.append(queue.name)
        app.amqp.queues.add(Queue(f"{queue.name}.another"))

    monkeypatch.setattr("celery.worker.consumer.delayed_delivery.bind_queue_to_native_delayed_delivery_exchange", bind)
    make = delayed_messages._of_this_moment(BIND)
    make(Slow(), app, None)
    assert bound == ["one", "two"]
    bound.clear()
    app.amqp.queues.select(["two"])  # -Q: nobody may have made the other one
    make(Slow(), app, None)
    assert bound == ["two"]


def test_a_queue_that_is_added_by_remote_control_gets_delayed_tasks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its producer may have no right to bind it, and the broker would drop them."""
    app = Celery("some", set_as_current=False)
    consumes, reached = SimpleNamespace(app=app), list[str]()
    consumes.add_task_queue = lambda name, exchange, kind: app.amqp.queues.add(Queue(name, Exchange(exchange, kind)))
    monkeypatch.setattr(delayed_messages.Delayed, "reach", lambda _, queue: reached.append(queue.name))
    add = partial(delayed_messages._added, consumes, consumes.add_task_queue)
    add("one", "one", "topic")
    add("two", "two", "direct")  # it is not delayed there
    assert reached == ["one"]


def test_a_worker_whose_broker_delays_nothing_has_nothing_to_wait_for() -> None:
    assert not delayed_messages.makes(SimpleNamespace())


def test_it_is_not_healthy_before_they_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees the file may send."""
    monkeypatch.setenv("HEARTBEAT_FILE", str(tmp_path / "heartbeat"))
    again: list[Callable[[], None]] = []
    timer = SimpleNamespace(call_repeatedly=lambda *_: object(), call_after=lambda _, look: again.append(look))
    state = SimpleNamespace(all_total_count=[0], requests={})
    worker = SimpleNamespace(
        makes_delays=lambda: True, timer=timer, on_connection_error_after_connected=None, pool=object(), qos=None,
        task_buckets={}, controller=SimpleNamespace(state=state),
        app=SimpleNamespace(amqp=SimpleNamespace(queues=SimpleNamespace(consume_from={}))),
    )  # fmt: skip
    heartbeat = Heartbeat(worker)
    heartbeat.start(worker)
    assert not heartbeat.file.exists()
    worker.makes_delays = lambda: False
    again.pop()()
    assert heartbeat.file.exists()
    assert not again


def test_celery_still_makes_them_first() -> None:
    """When this fails, the fix delayed_start is no longer needed."""
    step = Slow()
    step.answers.set()
    start: Callable[[Any, Any], None] = getattr(DelayedDelivery, "celerys_start", DelayedDelivery.start)
    start(step, consumer())
    assert step.thread == threading.get_ident()


NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("countdown", "eta", "given_back"),
    [
        (0.5, None, (1, None)),
        (None, NOW + timedelta(seconds=0.2), (1, None)),
        (None, (NOW + timedelta(seconds=0.2)).isoformat(), (1, None)),
        (None, None, (None, None)),
        (0, None, (0, None)),
        (-3, None, (-3, None)),
        (1, None, (1, None)),
        (7.5, None, (7.5, None)),
        (None, NOW + timedelta(seconds=1.5), (1.5, None)),
        (None, NOW + timedelta(seconds=60), (None, NOW + timedelta(seconds=60))),
        (None, NOW - timedelta(seconds=5), (None, NOW - timedelta(seconds=5))),
    ],
)
def test_no_delay_is_below_a_second_by_the_time_that_it_is_sent(countdown: Any, eta: Any, given_back: Any) -> None:
    """Whatever a connection takes: an ETA that is near does not pass meanwhile, and one that is far stays to the letter."""
    assert rounded_up(countdown, eta, NOW) == given_back


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({"exchange": "mails", "routing_key": "mails"}, "mails"),
        ({"exchange": EXCHANGE, "routing_key": calculate_routing_key(5, "mails.urgent")}, "mails.urgent"),
        ({"exchange": "news", "routing_key": "news.sport"}, None),
        ({"exchange": "mails", "routing_key": "mails", "queue": "other"}, "other"),
        ({}, None),
    ],
)
def test_only_what_means_a_queue_is_named(options: dict[str, Any], queue: str | None) -> None:
    found = named({**options, "retries": 2})
    assert found.get("queue") == queue and found["retries"] == 2
    assert ("exchange" in found) == ("exchange" in options and queue in (None, "other"))
