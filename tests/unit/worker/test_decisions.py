"""What a worker decides about a message, from the bytes that arrive, on both engines; the fuzzer's findings among them."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.base.gate import refusal, refuse_payload
from celery_kit.worker import dead_lettering
from tests.fuzz.inputs import SEEDS, TASK, usual
from tests.fuzz.worker import BROKERS, DEAD, ENGINES, EXPIRED, RUNS, WAITS, UndecidedError, outcome
from tests.security.hostile import GROUPS, Hostile, body, good


@cache
def hostile(broker: str) -> list[tuple[str, bytes]]:
    """The fixed inputs that the broker has a form for, but the bombs: making these takes seconds."""
    found: list[tuple[str, bytes]] = []

    def make() -> None:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(100_000)
        for one in (message for group in GROUPS if group != "bombs" for message in GROUPS[group](TASK)):
            try:
                found.append((one.what, SEEDS[broker](one)))
            except Exception:  # it has no form for it
                continue
        sys.setrecursionlimit(limit)

    size = threading.stack_size(512 * 1024 * 1024)  # py-amqp encodes what is nested deep by recursion
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    threading.stack_size(size)
    return found


@pytest.fixture(params=BROKERS)
def forms(request: pytest.FixtureRequest) -> Iterator[tuple[str, list[Any]]]:
    yield request.param, [BROKERS[request.param](engine) for engine in ENGINES]


def test_each_hostile_message_is_accepted_or_refused_alike_on_both_engines(forms: tuple[str, list[Any]]) -> None:
    broker, both = forms
    refused = 0
    for what, data in hostile(broker):
        fast, plain = (form.take(data) for form in both)
        assert (fast == DEAD) == (plain == DEAD) or fast == WAITS, (what, fast, plain, [one.worker.reasons for one in both])
        assert all(one.worker.reasons for one in both) or fast != DEAD or broker == "redis", what  # an item that is no message
        refused += plain == DEAD
    assert len(hostile(broker)) > 1_000 and refused > 500


def test_what_celerys_client_sends_is_accepted(forms: tuple[str, list[Any]]) -> None:
    broker, both = forms
    for one in usual():
        assert {form.take(SEEDS[broker](one)) for form in both} <= {RUNS, WAITS}, one.what


@pytest.mark.parametrize("name", ["eta", "expires"])
def test_an_empty_eta_is_refused(forms: tuple[str, list[Any]], name: str) -> None:
    """ENGINE=fast ran it at once; on the plain engine Celery raised AttributeError."""
    broker, both = forms
    data = SEEDS[broker](Hostile(name, good(TASK, **{name: ""}), body=body()))
    assert [form.take(data) for form in both] == [DEAD, DEAD]
    assert {reason for form in both for reason in form.worker.reasons} == {"its header eta or expires is empty"}


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"priority": float("inf")}, "cannot convert float infinity to integer"),
        ({"delivery_info": {"exchange": "gone", "routing_key": "q"}}, "it cannot be requeued: no queue takes it"),
    ],
)
def test_what_cannot_be_requeued_is_a_dead_letter(properties: dict[str, Any], why: str) -> None:
    """kombu logs and drops it: a task that was accepted, and whose worker stopped."""
    form = BROKERS["redis"]("fast")
    item = json.loads(SEEDS["redis"](Hostile("", good(TASK), properties, body())))
    form.requeue(item)
    ((_, _, record),) = form.server.stored
    assert why in json.loads(record)["letter"]["reason"]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_item_that_is_no_utf8_is_refused(engine: str) -> None:
    """kombu replaced such bytes: ENGINE=plain ran a task with a header that nobody had sent. AMQP has headers of bytes."""
    data = SEEDS["redis"](Hostile("", good(TASK, custom="PLACE"), body=body())).replace(b"PLACE", b"\xffLACE")
    assert BROKERS["redis"](engine).take(data) == DEAD


@pytest.mark.parametrize("content", [b'"0e9"', b'{"a": 1, "b": 2, "c": 3}', b"[[], {}]", b"5", b'{"args": 5}', b'{"args": []}'])
def test_a_body_without_arguments_is_refused(forms: tuple[str, list[Any]], content: bytes) -> None:
    """Celery unpacks what has three parts: the task failed, its failure could not be reported, and it was delivered again."""
    broker, both = forms
    data = SEEDS[broker](Hostile("", good(TASK), body=content))
    assert [form.take(data) for form in both] == [DEAD, DEAD]


@pytest.mark.parametrize("chain", [[{"task": TASK}], {"task": TASK, "options": {}}])
def test_a_chain_that_celery_cannot_fail_is_refused(forms: tuple[str, list[Any]], chain: object) -> None:
    """Celery reads the options of a chain's signatures when its task fails, and an error of that has no handler."""
    broker, both = forms
    data = SEEDS[broker](Hostile("", good(TASK), body=body(embed={"chain": chain})))
    assert [form.take(data) for form in both] == [DEAD, DEAD]


def test_retries_that_are_a_text_are_counted_on() -> None:
    """Some clients of other languages write a text; the lines about such a task were missing from the log."""
    sent = SimpleNamespace(
        headers=good(TASK, retries="2"), properties={}, body=body(), content_encoding="utf-8", payload={"task": TASK, "id": "1"}
    )
    message: Any = sent
    assert refusal(message) is None and sent.headers["retries"] == 2
    sent.payload["retries"] = "3"  # protocol 1
    refuse_payload(message)
    assert sent.payload["retries"] == 3


@pytest.mark.parametrize("error", [RecursionError, MemoryError, TypeError])
def test_an_error_of_the_gate_itself_ends_as_a_dead_letter(
    forms: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    broker, both = forms

    def broken(_: object) -> str:
        raise error("of the gate")

    monkeypatch.setattr(dead_lettering, "refusal", broken)
    data = SEEDS[broker](Hostile("", good(TASK), body=body()))
    assert [form.take(data) for form in both] == [DEAD, DEAD]
    assert all("makes its handler fail" in form.worker.reasons[0] for form in both)


@pytest.mark.parametrize(
    ("happened", "settled", "expected"),
    [([RUNS], 0, RUNS), ([], 1, EXPIRED), ([DEAD], 1, DEAD), ([], 0, None), ([RUNS, DEAD], 1, None), ([DEAD, DEAD], 2, None)],
)
def test_a_message_that_is_forgotten_or_decided_about_twice_is_found(
    happened: list[str], settled: int, expected: str | None
) -> None:
    decide: Callable[[], str] = lambda: outcome(happened, settled, once=True)  # noqa: E731
    if expected:
        assert decide() == expected
    else:
        with pytest.raises(UndecidedError):
            decide()
