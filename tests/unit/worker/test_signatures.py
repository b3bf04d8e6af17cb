"""A worker takes a signed message until one with its signature was acknowledged, and notes that by one round trip a group."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kombu
import pytest

from celery_kit.base.keys import Keys
from celery_kit.base.messages import SIGNATURE
from celery_kit.base.signing import Signer
from celery_kit.worker import signatures as module
from celery_kit.worker.signatures import PREFIX, Signatures
from tests.unit.base.test_signing import BODY, HEADERS, PROPERTIES, files, message


class Store:
    """Keys in memory. `away`: it answers nobody."""

    def __init__(self) -> None:
        self.keys: dict[str, float] = {}
        self.calls, self.away = 0, False

    def are_there(self, keys: Sequence[str]) -> list[bool]:
        self._answer()
        return [key in self.keys for key in keys]

    def note(self, keys: list[tuple[str, float]]) -> None:
        self._answer()
        self.keys.update(keys)

    def _answer(self) -> None:
        self.calls += 1
        if self.away:
            raise ConnectionError("away")


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(Keys(*files(tmp_path, kind="ed25519")), 60)


@pytest.fixture
def store() -> Store:
    return Store()


class Counted(kombu.Message):
    """A message whose acknowledgements are counted."""

    acks = 0

    def ack_log_error(self, *_: object, **__: object) -> None:
        self.acks += 1


class Request:
    """What has a message, and acknowledges it."""

    def __init__(self, message: Any) -> None:
        self.message = message

    def acknowledge(self) -> None: ...


Acked: Any = Counted  # the stub of its base knows text bodies alone


def signed(signer: Signer, **headers: Any) -> Any:
    named = {**HEADERS, "eta": None, **headers}
    made = signer.headers(named, PROPERTIES, BODY, "application/json", "utf-8")
    return Acked(BODY, None, "application/json", "utf-8", {}, PROPERTIES, made)


def take(signatures: Signatures, one: Any, queue: str = "celery") -> str:
    """What a worker does with a message: refused, used, or runs."""
    return signatures.refusal(one) or ("used" if signatures.was_used(one, queue) else "runs")


def test_it_runs_until_it_was_acknowledged(signer: Signer, store: Store) -> None:
    signatures, one = Signatures(signer, store), signed(signer)
    assert [take(signatures, one), take(signatures, signed(signer))] == ["runs"] * 2
    assert not store.keys
    one.ack_log_error(None, ())
    ((key, seconds),) = store.keys.items()
    assert one.acks == 1 and key.startswith(PREFIX) and 60 < seconds <= 60 + module.MARGIN
    assert take(Signatures(signer, store), one) == "used"
    assert take(signatures, signed(signer)) == "runs"


def test_a_message_that_was_routed_to_two_queues_runs_once_for_each(signer: Signer, store: Store) -> None:
    signatures, one = Signatures(signer, store), signed(signer)
    for queue in ("first", "second"):
        again = Acked(BODY, None, "application/json", "utf-8", {}, PROPERTIES, one.headers)
        assert take(signatures, again, queue) == "runs"
        again.ack_log_error(None, ())
    assert {take(signatures, one, queue) for queue in ("first", "second")} == {"used"}


def test_a_group_is_noted_by_one_round_trip(signer: Signer, store: Store) -> None:
    signatures, several = Signatures(signer, store), [signed(signer) for _ in range(64)]
    assert {take(signatures, one) for one in several} == {"runs"}
    asked = store.calls
    signatures.announce([Request(one).acknowledge for one in several] + [lambda: None])
    for one in several:
        one.ack_log_error(None, ())
    assert store.calls == asked + 1 and len(store.keys) == 64 and {one.acks for one in several} == {1}
    assert {take(signatures, one) for one in several} == {"used"}


def test_without_a_store_the_window_remains(signer: Signer, monkeypatch: pytest.MonkeyPatch) -> None:
    signatures, one, now = Signatures(signer, None), signed(signer), time.time()
    assert take(signatures, one) == take(signatures, one) == "runs"
    one.ack_log_error(None, ())
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert "signed, or was due, more than 60 s ago (SECURITY_WINDOW)" in take(signatures, one)


def test_a_delayed_task_is_valid_from_its_eta_on(signer: Signer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    one, now = signed(signer, eta="2030-01-01T00:00:00+00:00"), 1_893_456_000.0
    for later, said in ((now + 59, "runs"), (now + 61, "signature refused")):
        monkeypatch.setattr(time, "time", lambda later=later: later)
        assert take(Signatures(signer, store), one).startswith(said)


def test_while_the_store_is_away_tasks_run_and_are_noted_later(
    signer: Signer, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    signatures, several = Signatures(signer, store), [signed(signer) for _ in range(10)]
    store.away = True
    with caplog.at_level(logging.ERROR):
        for one in several:
            assert take(signatures, one) == "runs"
            one.ack_log_error(None, ())
    assert len(caplog.messages) == store.calls == 1 and not store.keys
    store.away, began = False, time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + module.PAUSE)
    last = signed(signer)
    assert take(signatures, last) == "runs"
    last.ack_log_error(None, ())
    assert len(store.keys) == 11 and {take(signatures, one) for one in several} == {"used"}


@pytest.mark.parametrize("headers", [None, [], {}, {"task": "x", "id": "y"}])
def test_what_is_not_signed_is_refused(signer: Signer, store: Store, headers: Any) -> None:
    one = Acked(BODY, None, "application/json", "utf-8", {}, PROPERTIES, headers)
    one.headers = headers
    assert Signatures(signer, store).refusal(one) == "signature refused: it is not signed"


def test_in_a_time_of_transition_a_signed_body_does(signer: Signer, store: Store) -> None:
    """Only where SECURITY_BODY_ONLY=1 says so, and only if the body has the form of Celery's serializer."""
    plain = Acked(signer.write([[], {}, {}]), None, "application/data", "utf-8", {}, PROPERTIES, HEADERS)
    assert "it is not signed" in str(Signatures(signer, store).refusal(plain))
    signer.body_only = True
    signatures = Signatures(signer, store)
    assert signatures.refusal(plain) is None and not signatures.was_used(plain, "celery")
    assert "it is not signed" in str(signatures.refusal(Acked(BODY, None, "application/json", "utf-8", {}, {}, HEADERS)))
    assert "Bad signature" in str(signatures.refusal(message(signer, task="other")))


def test_one_question_is_about_those_that_wait_behind(signer: Signer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is asked about once more if it comes twice, or comes late."""
    found = Signatures(signer, store)
    several = [signed(signer) for _ in range(4)]
    lines = [one.headers[SIGNATURE] for one in several]
    store.keys[f"{PREFIX}{lines[3].split(' ')[1]}.q"] = 60.0

    def used(number: int) -> bool:
        assert found.refusal(several[number]) is None
        return found.was_used(several[number], "q", lambda most: [("q", line) for line in [*lines[number + 1 :], "x"][:most]])

    assert [used(0), used(1), used(2)] == [False] * 3
    assert store.calls == 1
    assert used(3), "it was acknowledged"
    assert store.calls == 2
    assert not used(2), "a copy"
    assert store.calls == 3
    used(0)
    monkeypatch.setattr(module, "FRESH", 0.0)
    used(1)
    assert store.calls == 5
