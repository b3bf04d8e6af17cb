"""What a worker counts of its tasks."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry

from celery_kit.base.facts import BOUNDS, vitals_of
from celery_kit.pools import measures
from celery_kit.pools.measures import Measures

NOW = 1e9


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Measures:
    monkeypatch.setattr(measures, "time", lambda: NOW)
    return Measures()


def request(task: str = "a", queue: str = "celery", sent: Any = NOW, eta: float | None = None) -> Any:
    due = None if eta is None else datetime.fromtimestamp(eta, UTC)
    headers = {"sent": sent} if sent is not None else {}
    return SimpleNamespace(task=SimpleNamespace(name=task), delivery_info={"routing_key": queue}, request_dict=headers, eta=due)


def info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


@pytest.mark.parametrize(
    ("sent", "eta", "seconds"),
    [
        (NOW - 0.3, None, 0.3),
        (NOW - 90, NOW - 2, 2.0),
        (NOW - 2, NOW - 90, 2.0),
        (NOW + 0.0005, None, 0.0),
        (NOW - 9e6, None, 9e6),
    ],
)
def test_a_wait_lasts_from_the_publication_or_the_eta(
    counted: Measures, sent: float, eta: float | None, seconds: float
) -> None:
    counted.begins(request(sent=sent, eta=eta))
    (one,) = counted.report()
    *buckets, total = one["waited"]
    assert total == pytest.approx(seconds) and sum(buckets) == 1
    bound = [*BOUNDS, float("inf")][buckets.index(1)]
    assert seconds <= bound and not one["early"]


def test_a_wait_that_is_negative_is_none(counted: Measures) -> None:
    """The producer's clock is ahead, or the worker's is behind."""
    counted.begins(request(sent=NOW + 5))
    (one,) = counted.report()
    assert one["early"] == 1 and not any(one["waited"])


@pytest.mark.parametrize("sent", [None, "yesterday", [], float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_message_of_another_producer_has_no_wait(counted: Measures, sent: Any) -> None:
    counted.begins(request(sent=sent))
    assert not counted.report()


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ((0, "'result'", 0.2), "succeeded"),
        ((1, info(Retry("again", ValueError())), None), "retried"),
        ((1, info(Reject("no")), None), "rejected"),
        ((1, info(Ignore()), None), "ignored"),
        ((1, info(ValueError()), None), "failed"),
        (info(ValueError()), "failed"),
        (object(), "terminated"),
    ],
)
def test_each_end_has_its_outcome(counted: Measures, value: object, outcome: str) -> None:
    counted.ends(request(), value)
    (one,) = counted.report()
    assert one["ended"] == {outcome: 1}
    assert sum(one["ran"][:-1]) == (outcome == "succeeded")


def test_tasks_and_queues_are_bounded(counted: Measures) -> None:
    """A label that anybody may choose, such as a queue's name, must not fill the memory of the worker or of Prometheus."""
    for number in range(3 * measures.MOST):
        counted.begins(request(queue=f"q{number}"))
    found = counted.report()
    assert len(found) == measures.MOST + 1
    assert sum(found[-1]["waited"][:-1]) == 2 * measures.MOST and found[-1]["queue"] == measures.OTHER


def test_a_delayed_message_is_counted_in_its_queue(counted: Measures) -> None:
    counted.begins(request(queue="0." * 27 + "1.celery"))
    assert counted.report()[0]["queue"] == "celery"


def test_a_report_of_another_version_is_left_out(counted: Measures) -> None:
    counted.begins(request())
    (one,) = counted.report()
    others = [None, {}, {**one, "waited": [1.0]}, {**one, "early": None}, {**one, "ended": []}]
    assert vitals_of({"measures": [*others, one]})["measures"] == [one]
