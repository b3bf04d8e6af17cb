"""Beats of which one leads, step by step, on real servers. celery_kit/produce/beats.py, and `beats.py` of each broker."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import pytest
from celery.beat import PersistentScheduler, SchedulingError
from kombu import Queue
from kombu.exceptions import OperationalError
from kombu.utils.imports import symbol_by_name

from celery_kit import Kit
from celery_kit.brokers import room
from celery_kit.brokers.contract import Broker, Run
from celery_kit.produce import beats
from celery_kit.produce.publishing import GivenProducer
from tests.harness.servers import Server, rabbitmq
from tests.harness.waiting import until

RUN: Run = {"last_run_at": "2026-12-01T10:00:00+00:00", "total_run_count": 3}


@pytest.fixture(scope="module", params=["embedded", "rabbitmq"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty broker."""
    with ExitStack() as opened:
        if request.param == "embedded":
            yield opened.enter_context(Server()).urls["CELERY_BROKER_URL"]
        else:
            yield opened.enter_context(rabbitmq())[0]


@dataclass
class Stage:
    """Beats of one app, in this process. Each has an app of that name of its own, as each process has."""

    url: str
    folder: Path
    name: str = field(default_factory=lambda: uuid4().hex)
    schedulers: list[Any] = field(default_factory=list)
    leads: list[Any] = field(default_factory=list)

    @property
    def broker(self) -> Broker:
        found = room(self.url)
        assert found
        return found

    def app(self, **settings: Any) -> Kit:
        with patch.dict(os.environ, {"BEATS": "2"}):
            app = Kit(self.name, set_as_current=False, broker=self.url)
            app.conf.update({"task_default_queue": self.name, "result_expires": None} | settings)
            assert app.conf.beats == 2
        return app

    def lead(self) -> Any:
        app = self.app()
        self.leads.append(found := symbol_by_name(self.broker.lead or "")(app))
        return found

    def beat(self, schedule: Any = 3_600.0, **settings: Any) -> Any:
        """A beat with an entry `a`, and others."""
        entries = {"a": {"task": "some.task", "schedule": schedule, "args": [1]}}
        app = self.app(beat_schedule=entries | settings.pop("entries", {}), **settings)
        assert app.conf.beat_scheduler == "celery_kit.produce.beats:Scheduler"
        self.schedulers.append(made := beats.Scheduler(app=app, schedule_filename=str(self.folder / f"{len(self.schedulers)}")))
        return made

    def declare(self, name: str = "") -> None:
        """Declare the queue, as a worker does."""
        app = self.app()
        with app.connection_for_write() as connection:
            app.amqp.queues[name or self.name](connection.default_channel).declare()

    def sent(self, name: str = "") -> int:
        """How many messages wait in the queue."""
        with self.app().connection_for_read() as connection, suppress(*connection.channel_errors):  # there is none yet
            channel: Any = connection.default_channel
            return int(channel.queue_declare(name or self.name, passive=True).message_count)
        return 0

    def close(self) -> None:
        for one in self.schedulers:
            one.lead.leave()
        for one in self.leads:
            one.leave()


@pytest.fixture
def stage(url: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(url, tmp_path)
    yield made
    made.close()


def leads(lead: Any) -> Any:
    """Wait until it leads; a broker may take a moment to give up the former one."""
    return until("it leads", lead.hold, 20)


def cut(lead: Any, stage: Stage) -> None:
    """Have the broker take a beat for dead, without that beat's knowledge."""
    if hasattr(lead, "_me"):
        with lead.connection.default_channel.conn_or_acquire() as client:
            client.delete(f"{lead._runs}.leader")
    else:
        sock = lead.connection.connection.sock
        sock.shutdown(socket.SHUT_WR)  # the broker sees its end, the beat nothing


def tick(scheduler: Any, condition: Callable[[], Any], seconds: float = 20) -> None:
    until("it is so after some rounds", lambda: (scheduler.tick(), condition())[1], seconds)


def test_one_leads_until_it_leaves(stage: Stage) -> None:
    """Others follow. A beat that stops lets another lead at once."""
    one, two, three = (stage.lead() for _ in range(3))
    term = leads(one)
    for _ in range(5):
        assert not two.hold() and not three.hold() and one.hold() == term
    one.leave()
    until("another leads", lambda: two.hold() or three.hold(), 20)
    for _ in range(5):
        assert not one.hold() and bool(two.hold()) != bool(three.hold())


def test_a_beat_that_is_taken_for_dead_is_followed_and_sends_nothing(stage: Stage) -> None:
    """It believes that it leads, as one that was frozen: the broker does neither of the two steps for it."""
    one, two = stage.lead(), stage.lead()
    term = leads(one)
    assert one.fire("a", RUN, None)
    cut(one, stage)
    leads(two)
    assert two.runs() == {"a": RUN}
    assert two.fire("a", {**RUN, "total_run_count": 4}, None)
    with suppress(*one.errors):  # on a connection that has ended, it cannot know
        assert not one.fire("a", {**RUN, "total_run_count": 9}, None)
    assert two.runs()["a"]["total_run_count"] == 4
    two.leave()
    assert leads(one) != term
    assert one.runs()["a"]["total_run_count"] == 4


def test_the_time_is_the_brokers(stage: Stage) -> None:
    one = stage.lead()
    with patch(f"{type(one).__module__}.time", lambda: 1.0):
        leads(one)
        found = one.now()
    assert abs(found - time.time()) < 3


def test_what_others_have_stored_is_left_out(stage: Stage) -> None:
    """Anybody who may write there may write anything."""
    one = stage.lead()
    leads(one)
    bad: Any = {"a": RUN, "b": {"last_run_at": 7}, "c": None, "d": {**RUN, "total_run_count": "many"}}
    assert one.keep(bad)
    assert one.runs() == {"a": RUN}


def test_a_due_time_is_sent_once_by_whichever_beat(stage: Stage) -> None:
    """The message and the run of its entry are one step, so the next leader knows what was sent."""
    stage.declare()
    one, two = stage.beat(schedule=2.0), stage.beat(schedule=2.0)
    tick(one, lambda: stage.sent() == 1)
    two.tick()
    assert one.leads and not two.leads
    cut(one.lead, stage)
    tick(two, lambda: two.leads)
    assert two.schedule["a"].total_run_count == 1
    before = two.schedule["a"].last_run_at
    tick(two, lambda: two.schedule["a"].total_run_count == 2)
    assert two.schedule["a"].last_run_at - before >= timedelta(seconds=1.9)
    for _ in range(3):
        one.tick()
    assert not one.leads and stage.sent() == 2


@pytest.mark.parametrize("how", ["it says no", "an error"])
def test_what_was_sent_is_not_sent_again_if_the_answer_is_lost(stage: Stage, how: str) -> None:
    """The beat asks the broker what was sent before it sends anything more."""
    stage.declare()
    one = stage.beat(schedule=3.0)
    fire, lost = one.lead.fire, list[str]()

    def fired(*args: Any) -> bool:
        done = bool(fire(*args))
        if not lost:
            lost.append(how)
            if how == "an error":
                raise one.lead.errors[0]("the connection is lost")
            return False
        return done

    one.lead.fire = fired
    tick(one, lambda: stage.sent() == 1)
    tick(one, lambda: one.leads and one.schedule["a"].total_run_count == 1)
    for _ in range(3):
        one.tick()
    assert lost and stage.sent() == 1


def test_the_timetable_goes_by_the_brokers_clock(stage: Stage) -> None:
    """An hour more on one machine's clock makes nothing due."""
    stage.declare()
    one = stage.beat(schedule=1_800.0)
    tick(one, lambda: one.leads)
    ahead = datetime.now(UTC) + timedelta(hours=1)
    with patch.object(Kit, "now", lambda _: ahead), patch("time.time", lambda: ahead.timestamp()):
        for _ in range(3):
            one.tick()
    assert stage.sent() == 0 and one.schedule["a"].total_run_count == 0


def test_an_interval_goes_on_when_another_beat_leads(stage: Stage) -> None:
    """An entry that has not run yet is due as long after the first start as its interval says, not after the last."""
    one = stage.beat()
    tick(one, lambda: one.leads)
    began = one.schedule["a"].last_run_at
    one.close()
    two = stage.beat()
    two.schedule["a"].last_run_at += timedelta(hours=2)  # as the clock of its machine had it
    tick(two, lambda: two.leads)
    assert two.schedule["a"].last_run_at == began


def test_what_a_single_beat_has_sent_is_known(stage: Stage) -> None:
    """The file has later runs than the broker if the stack had one beat meanwhile."""
    one = stage.beat()
    tick(one, lambda: one.leads)
    one.close()
    two = stage.beat()
    entry = two.schedule["a"]
    entry.total_run_count, entry.last_run_at = 7, datetime.now(UTC) - timedelta(minutes=5)
    kept = entry.last_run_at
    tick(two, lambda: two.leads)
    assert (two.schedule["a"].total_run_count, two.schedule["a"].last_run_at) == (7, kept)
    assert two.lead.runs()["a"]["total_run_count"] == 7


def test_a_message_that_cannot_be_made_counts_as_sent(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """As with one beat: it is logged, and others are not held up."""
    stage.declare()
    wrong = {"task": "some.task", "schedule": 1.0, "kwargs": {"x": object()}}
    one = stage.beat(schedule=1.0, entries={"wrong": wrong})
    tick(one, lambda: stage.sent() >= 2)
    assert one.schedule["wrong"].total_run_count >= 1
    assert "Message Error" in caplog.text


def test_a_message_that_could_not_be_made_for_now_is_sent_later(stage: Stage) -> None:
    """Making it may need the broker: to delay a task, to name a queue for its reply."""
    stage.declare()
    one, failed = stage.beat(schedule=1.0), list[Exception]()
    apply = one.apply_async

    def applied(*args: Any, **options: Any) -> object:
        if not failed:
            try:
                failed.append(OperationalError("the broker is away"))
                raise failed[0]
            except OperationalError:
                raise SchedulingError("so it cannot be made")  # noqa: B904  # as Celery does
        return apply(*args, **options)

    one.apply_async = applied
    tick(one, lambda: stage.sent())
    assert failed and one.schedule["a"].total_run_count == stage.sent()


def test_a_message_waits_until_its_queue_is_there(stage: Stage) -> None:
    """A broker that would drop it gets it later, and other entries are sent meanwhile."""
    other = f"{stage.name}-other"
    stage.declare(other)
    entries = {"b": {"task": "some.task", "schedule": 1.0, "options": {"queue": other}}}
    one = stage.beat(schedule=1.0, entries=entries)
    if stage.broker.name == "rabbitmq":
        # The account of beat has no right to declare it; this one has, and is kept from it.
        with patch.object(GivenProducer, "maybe_declare"):
            tick(one, lambda: stage.sent(other) >= 2)
            assert one.schedule["a"].total_run_count == 0
        stage.declare()
    tick(one, lambda: one.schedule["a"].total_run_count and stage.sent())


def test_a_delayed_task_of_the_timetable_is_sent(stage: Stage) -> None:
    """An entry's options are kept, as of one beat."""
    stage.declare()
    entries = {"b": {"task": "some.task", "schedule": 1.0, "options": {"priority": 5, "expires": 60}}}
    one = stage.beat(entries=entries)
    tick(one, lambda: stage.sent())
    with stage.app().connection_for_read() as connection:
        message: Any = Queue(stage.name)(connection.default_channel).get(no_ack=True)
    assert message.headers["celery_beat_task"] and message.headers["expires"] and message.properties["priority"] == 5
    assert message.payload[0] == []


def test_a_scheduler_that_would_not_follow_is_refused(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before it sends anything: each beat would send everything."""
    app = stage.app(beat_schedule={})
    service = app.Beat(scheduler_cls="celery.beat:PersistentScheduler", schedule=str(stage.folder / "x")).Service(
        app=app, scheduler_cls=PersistentScheduler, schedule_filename=str(stage.folder / "x")
    )
    with pytest.raises(SystemExit) as exits:
        beats.check(service)
    assert exits.value.code == 2
    assert "BEATS=2: the scheduler celery.beat.PersistentScheduler would have each beat send" in capsys.readouterr().err


def test_a_broker_that_names_no_leader_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exits:
        Stage("memory://", tmp_path).beat()
    assert exits.value.code == 2
    assert "BEATS=2 cannot be had with this broker; with rabbitmq, redis, embedded, or BEATS=1" in capsys.readouterr().err


def test_a_broker_that_is_away_ends_no_beat(tmp_path: Path) -> None:
    """It neither leads nor shows a sign of life, and goes on once there is a broker."""
    with Server() as server:
        stage = Stage(server.urls["CELERY_BROKER_URL"], tmp_path)
        one = stage.beat()
        with patch.dict(os.environ, HEARTBEAT_FILE=str(tmp_path / "beat")):
            tick(one, lambda: one.leads)
            server.stop()
            (tmp_path / "beat").unlink()
            tick(one, lambda: not one.leads)
            assert not (tmp_path / "beat").exists()
            server.start()
            tick(one, partial((tmp_path / "beat").exists))
        stage.close()
