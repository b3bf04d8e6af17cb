"""The worker's keeper of failed tasks: what it does while the broker refuses them, or is unavailable."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import OperationalError
from celery.worker.request import Request as CelerysRequest

from celery_kit.brokers.contract import DeadLetter
from celery_kit.engine.commit import REQUEST
from celery_kit.engine.commit_worker import CELERYS_REQUEST
from celery_kit.pools.failed import Request
from celery_kit.worker import failed
from celery_kit.worker.dead_lettering import MOST_TRACEBACK
from tests.harness.waiting import until


class Store:
    """A place for failed tasks that raises `errors` first."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.stored = list(errors), list[DeadLetter]()
        self.opened = self.dropped = 0

    def put(self, several: Sequence[tuple[Any, DeadLetter]]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.stored += [letter for _, letter in several]

    def close(self) -> None: ...


def keeper(store: Store) -> failed.Keeper:
    def opened(*_: object) -> Store:
        store.opened += 1
        return store

    connection = SimpleNamespace(connect=lambda: None, release=lambda: None, collect=lambda: None)
    app = SimpleNamespace(
        pool=SimpleNamespace(acquire=lambda **_: connection), conf=SimpleNamespace(broker_pool_acquire_timeout=1)
    )
    consumer: Any = SimpleNamespace(
        app=app, hostname="here", hub=None, task_consumer=None, connection_errors=(ConnectionError,)
    )
    letters: Any = SimpleNamespace(failed=opened, queue_of=lambda *_: "q")
    return failed.Keeper(consumer, letters)


def request(number: int = 0) -> Any:
    message = SimpleNamespace(headers={"id": f"{number}", "task": "t", "retries": 2}, properties={}, body=b"")
    return SimpleNamespace(message=message, name="t", id=f"{number}")


def test_many_are_stored_together_and_then_acknowledged() -> None:
    store, done = Store(), list[int]()
    one = keeper(store)
    one.start()
    for number in range(30):
        one.put(request(number), ValueError("x"), "trace", lambda number=number: done.append(number))  # type: ignore[misc]
    until("all are acknowledged", lambda: done == list(range(30)), 10)
    one.stop()
    assert [letter.id for letter in store.stored] == [str(number) for number in range(30)]
    letter = store.stored[0]
    assert (letter.kind, letter.reason, letter.attempts, letter.worker) == ("failed", "ValueError: x", 3, "here")
    assert store.opened == 1


def test_none_is_acknowledged_while_the_broker_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed, "RETRY_PAUSE", 0.0)
    store, done = Store(ConnectionError(), OperationalError(), ConnectionError()), list[int]()
    one = keeper(store)
    one.start()
    one.put(request(), ValueError("x"), "", lambda: done.append(len(store.stored)))
    until("it is acknowledged", lambda: done, 10)
    assert done == [1]


def test_a_worker_that_ends_leaves_what_it_cannot_store_unacknowledged() -> None:
    store, done = Store(*(ConnectionError() for _ in range(9))), list[int]()
    one = keeper(store)
    one.put(request(), ValueError("x"), "", lambda: done.append(1))
    assert not done and not store.stored


def test_one_that_is_refused_for_good_does_not_hold_up_others(caplog: pytest.LogCaptureFixture) -> None:
    store, done = Store(TypeError("no")), list[int]()
    one = keeper(store)
    one.put(request(), ValueError("x"), "", lambda: done.append(1))
    assert done == [1] and "the failed task t[0] is not stored" in caplog.text


def test_the_texts_of_a_letter_fit() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    store = Store()
    keeper(store).put(request(), OddError(), "x" * 2 * MOST_TRACEBACK + "\ud800end", lambda: None)
    (letter,) = store.stored
    assert letter.reason == "OddError: (its text cannot be read: RuntimeError)"
    assert len(letter.traceback) == MOST_TRACEBACK and letter.traceback.endswith("\\ud800end")


class Theirs(CelerysRequest):
    """A user's Request class."""


def test_the_users_own_request_class_is_kept() -> None:
    assert failed.keeping(REQUEST) == REQUEST
    assert failed.keeping(CELERYS_REQUEST) is Request
    both = failed.keeping(Theirs)
    assert isinstance(both, type) and issubclass(both, Theirs) and issubclass(both, Request)
    assert failed.keeping(f"{__name__}:Theirs") is not Theirs
    assert failed.keeping(both) is both
    other: Any = lambda *_: None  # noqa: E731  # a factory
    assert failed.keeping(other) is other
