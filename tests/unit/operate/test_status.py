"""Whatever a worker answers, the tools go on: it may be of an older version, or not be the kit's at all."""

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest

from celery_kit.base.facts import BOUNDS, VITALS, Held, Member, Queue, Server, TimetableEntry, readable, vitals_of
from celery_kit.operate.look import doctor, exporter
from celery_kit.operate.look.doctor import STACK, Scene, orphans, redelivery
from celery_kit.operate.look.exporter import metrics
from celery_kit.operate.look.status import Snapshot, lines, packed, unpacked

ANSWERS: list[Any] = [
    {"error": "Unknown control command 'vitals'"},
    {"ok": "pong"},
    {},
    None,
    "no",
    [],
    dict.fromkeys(VITALS, "wrong") | {"pool": 1},
    {"consuming": [1, None, {"name": "celery"}], "clock": 1e12},
    {"consuming": [], "pool": "threads"},
]


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
def test_no_answer_of_a_worker_breaks_what_is_made_from_it(answer: Any) -> None:
    """An answer is taken for what it is where it comes in; nobody behind that sees its shape."""
    broker = Server("Broker", "1", [Queue("celery", 3)])
    found = Snapshot(broker, None, {"w@there": vitals_of(answer)}, [Member("worker", "running", True, "w@there")])
    assert any(line.startswith("w@there") for line in lines(found))
    list(metrics(found))
    with patch("celery_kit.operate.look.doctor.snapshot", lambda *_: found):
        faults = [what for check in STACK for what, _ in check(Scene(members=found.members))]
    assert not any("no worker consumes" in one for one in faults) or vitals_of(answer)["consuming"] is not None


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://%3A%3A1:6379/0", "redis://[::1]:6379/0"),
        ("amqp://kit:**@fd00%3A%3A2:5672/kit", "amqp://kit:**@[fd00::2]:5672/kit"),
        ("redis://cache:6379/0", "redis://cache:6379/0"),
        ("amqp://kit:**@broker:5672/a%3Ab", "amqp://kit:**@broker:5672/a%3Ab"),
        ("redis+socket:///run/redis.sock", "redis+socket:///run/redis.sock"),
    ],
)
def test_an_address_is_shown_as_people_write_it(url: str, shown: str) -> None:
    assert readable(url) == shown


def test_the_exporter_serves_what_became_of_tasks() -> None:
    """As Prometheus reads it: buckets add up, and each has its worker, which is what a counter starts again with."""
    numbers = [0.0] * (len(BOUNDS) + 2)
    waited = [*numbers]
    waited[0], waited[2], waited[-2], waited[-1] = 3.0, 2.0, 1.0, 4_000.5
    one = {
        "task": "mail",
        "queue": "celery",
        "waited": waited,
        "ran": numbers,
        "ended": {"succeeded": 5, "failed": 1},
        "early": 2,
    }
    found = Snapshot(Server("Broker", "1"), None, {"w@there": vitals_of({"measures": [one]})}, [])
    samples = {
        (sample.name, sample.labels.get("le") or sample.labels.get("outcome")): sample.value
        for metric in exporter.of_tasks(found)
        for sample in metric.samples
        if {"worker": "w@there", "task": "mail", "queue": "celery"}.items() <= sample.labels.items()
    }
    wait = "celery_kit_task_wait_seconds"
    assert [samples[f"{wait}_bucket", le] for le in ("0.01", "0.05", "0.1", "1800.0", "+Inf")] == [3, 3, 5, 5, 6]
    assert (samples[f"{wait}_count", None], samples[f"{wait}_sum", None]) == (6, 4_000.5)
    assert (samples["celery_kit_tasks_total", "succeeded"], samples["celery_kit_tasks_total", "failed"]) == (5, 1)
    assert samples["celery_kit_task_early_total", None] == 2
    assert not [metric.samples for metric in exporter.of_tasks(Snapshot("away", None, {}, [])) if metric.samples]


def test_the_version_of_each_worker_is_shown_where_one_tells_it() -> None:
    """And it is a label of a metric. A worker of another version of the kit may tell none."""
    answers: dict[str, Any] = {"a@x": {"version": "1.4"}, "b@x": {"version": "1.5-rc"}, "c@x": {}, "d@x": {"version": 1.6}}
    workers = {node: vitals_of(answer) for node, answer in answers.items()}
    found = Snapshot(Server("Broker", "1"), None, workers, [Member("worker", "exited", False, "e@x")])
    shown = [line for line in lines(found) if "@x" in line or line.startswith("worker ")]
    assert [line.split()[-1] for line in shown] == ["version", "1.4", "1.5-rc", "-", "-", "EXITED"]
    assert "version" not in "".join(lines(replace(found, workers={"c@x": workers["c@x"]})))
    samples = [sample for metric in metrics(found) for sample in metric.samples if sample.name == "celery_kit_worker_version"]
    assert [(one.labels["worker"], one.labels["version"]) for one in samples] == [
        ("a@x", "1.4"), ("b@x", "1.5-rc"), ("c@x", ""), ("d@x", ""),
    ]  # fmt: skip


@pytest.mark.parametrize(("delayed", "values"), [(3, [3.0]), (0, [0.0]), (None, [])])
def test_the_exporter_serves_how_many_tasks_wait_for_their_eta(delayed: int | None, values: list[float]) -> None:
    found = Snapshot(Server("Broker", "1", delayed=delayed), None, {}, [])
    samples = [sample for metric in metrics(found) for sample in metric.samples if sample.name == "celery_kit_delayed"]
    assert [sample.value for sample in samples] == values


HELD = [Held("a@x", queue="q", task="t", id="1"), Held("b@x", dead=60.0, queue="q", task="t", id="2"), Held("", 30)]


def test_it_is_shown_who_holds_which_message() -> None:
    found = unpacked(packed(Snapshot(Server("Broker", "1", held=HELD), None, {}, [])))
    assert [line.split() for line in lines(found) if "held by" in line or " t  " in line or "nobody" in line] == [
        ["unacknowledged", "held", "by", "queue", "task", "id"],
        ["1", "a@x", "q", "t", "1"],
        ["1", "NOBODY:", "b@x", "is", "dead", "q", "t", "2"],
        ["30", "nobody,", "or", "a", "worker", "without", "the", "kit"],
    ]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"visibility_timeout": 60, "longest_task": 300}, True),
        ({"visibility_timeout": 600, "longest_task": 300}, False),
        ({}, False),
    ],
)
def test_a_worker_without_a_lease_whose_tasks_are_redelivered_while_they_run(answer: dict[str, int], found: bool) -> None:
    """One with a lease reports no visibility timeout."""
    now = Snapshot(Server("Broker", "1"), None, {"w@there": vitals_of(answer)}, [])
    with patch("celery_kit.operate.look.doctor.snapshot", lambda *_: now):
        said = [what for what, _ in redelivery(Scene())]
    assert said == (["worker w@there: the broker redelivers a task after 60 s, and a task may run for 300 s"] if found else [])


@pytest.mark.parametrize("answer", [{"clock": 1.0}, {}], ids=["the kit's", "another"])
def test_messages_that_nobody_holds_are_found(answer: dict[str, float]) -> None:
    """A worker without the kit holds messages too, and nobody can tell which."""
    found = Snapshot(Server("Broker", "1", held=HELD), None, {"w@there": vitals_of(answer)}, [])
    with patch("celery_kit.operate.look.doctor.snapshot", lambda *_: found):
        faults = [what for what, _ in orphans(Scene())]
    assert faults[0] == "the message of task t 2, held by worker b@x, which is dead"
    assert faults[1:] == (["30 unacknowledged messages, which no worker holds"] if answer else [])


def beat(leads: bool | None, state: str = "running", running: bool = True) -> Member:
    """A beat of a stack, with an entry."""
    entry: TimetableEntry = {"last": None, "next": "2026-12-01T10:00:00+00:00", "runs": 0}
    return Member("beat", state, running, None, {"daily": entry}, leads=leads)


@pytest.mark.parametrize(
    ("leads", "shown"), [((None,), ["running"]), ((True, False), ["running, leads", "running, follows"])], ids=["one", "two"]
)
def test_it_is_shown_which_beat_leads(leads: tuple[bool | None, ...], shown: list[str]) -> None:
    """The timetable is that of the leader."""
    table = lines(Snapshot(Server("Broker", "1"), None, {}, [beat(one) for one in leads]))
    assert [line.removeprefix("beat      ") for line in table if line.startswith("beat ")] == shown
    assert sum("daily: not run yet" in line for line in table) == 1


@pytest.mark.parametrize(
    ("leads", "found"),
    [
        ((None,), []),
        ((True, False), []),
        ((True, False, False), []),
        ((False, False), ["none of 2 beats leads: no scheduled task is sent"]),
        ((True, True), ["2 beats think that they lead (one; two): one of them is frozen, or cut off"]),
        ((None, None), ["2 beats run: each sends every scheduled task"]),
        ((True, None), ["2 beats run: each sends every scheduled task"]),
    ],
)
def test_who_leads_is_checked(leads: tuple[bool | None, ...], found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_beats_here", list)
    members = [beat(one, name) for one, name in zip(leads, ("one", "two", "three"), strict=False)]
    assert [what for what, _ in doctor.one_beat(doctor.Scene(members))] == found
