"""Which ends of a task are failures for good, by what Celery's own handlers do with them. celery_kit/pools/failed.py"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded, Terminated, WorkerLostError
from celery.worker.state import revoked

from celery_kit.pools import failed


class Message(SimpleNamespace):
    """A task's message, which notes what is done with it."""

    def __init__(self, **headers: Any) -> None:
        body: Any = ([], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None})
        self.done: list[str] = []
        super().__init__(
            headers={"id": "1", "task": "t", **headers},
            body=body,
            payload=body,
            content_type="application/json",
            content_encoding="utf-8",
            delivery_info={},
            properties={},
        )


class Kept:
    """A keeper that acknowledges when it is asked to."""

    def __init__(self) -> None:
        self.put_in: list[tuple[BaseException, str]] = []
        self.then: list[Any] = []

    def put(self, request: Any, error: BaseException, traceback: str, then: Any) -> None:
        self.put_in.append((error, traceback))
        self.then.append(then)


@pytest.fixture
def keeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    one = Kept()
    monkeypatch.setattr(failed.Request, "keeper", one)
    yield one
    revoked.discard("1")


def nothing() -> None:
    """A task."""


def request(message: Message, **options: Any) -> Any:
    app = Celery("failing", broker="memory://", backend="cache+memory://", set_as_current=False)
    register: Any = app.task(name="t", acks_late=True, shared=False, **options)
    register(nothing)
    done = message.done.append
    made: Any = failed.Request
    return made(
        message,
        app=app,
        hostname="here",
        on_ack=lambda *_: done("ack"),
        on_reject=lambda _, __, requeue: done("requeue" if requeue else "reject"),
    )


def info(error: BaseException) -> ExceptionInfo:
    try:
        raise error
    except BaseException:
        return ExceptionInfo()


@pytest.mark.parametrize("error", [ValueError("x"), SoftTimeLimitExceeded(), type("Odd", (Exception,), {})("x")])
def test_a_failure_is_stored_before_it_is_acknowledged(keeper: Kept, error: Exception) -> None:
    message = Message()
    request(message).on_failure(info(error), return_ok=True)
    ((found, traceback),) = keeper.put_in
    assert found is error and "Traceback" in traceback and not message.done
    keeper.then[0]()
    assert message.done == ["ack"]


@pytest.mark.parametrize(
    ("error", "options", "done"),
    [
        (Ignore(), {}, ["ack"]),
        (Reject(requeue=False), {}, ["reject"]),
        (Reject(requeue=True), {}, ["requeue"]),
        (Retry(exc=ValueError()), {}, ["ack"]),
        (KeyError("x"), {"throws": (LookupError,)}, ["ack"]),
        (KeyError("x"), {"throws": LookupError}, ["ack"]),
        (ValueError("x"), {"keep_failed": False}, ["ack"]),
        (ValueError("x"), {"acks_on_failure_or_timeout": False}, ["reject"]),
        (Terminated(15), {}, ["ack"]),
    ],
)
def test_what_is_no_failure_ends_as_celery_ends_it(keeper: Kept, error: Exception, options: Any, done: list[str]) -> None:
    message = Message()
    request(message, **options).on_failure(info(error), return_ok=True)
    assert (keeper.put_in, message.done) == ([], done)


@pytest.mark.parametrize(("options", "stored", "done"), [({"reject_on_worker_lost": True}, 0, ["requeue"]), ({}, 1, [])])
@pytest.mark.parametrize("error", [WorkerLostError("gone"), SystemExit(3)])
def test_a_lost_process_is_a_failure_unless_it_is_requeued(
    keeper: Kept, error: BaseException, options: Any, stored: int, done: list[str]
) -> None:
    message = Message()
    request(message, **options).on_failure(info(error))
    assert (len(keeper.put_in), message.done) == (stored, done)


@pytest.mark.parametrize("kept", [True, False])
def test_a_failure_that_cannot_be_reported_requeues_its_message(
    keeper: Kept, kept: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The results server refuses it. Unacknowledged, it would be held until the worker ends."""
    message = Message()
    one = request(message, keep_failed=kept, acks_on_failure_or_timeout=True)

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("refused")

    monkeypatch.setattr(one.task.backend, "mark_as_failure", refuse)
    one.on_failure(info(ValueError("x")))
    assert not keeper.put_in and message.done == (["requeue"] if kept else ["ack"])
    assert "cannot be reported" in caplog.text


def test_an_end_that_stops_the_worker_requeues_nothing(keeper: Kept) -> None:
    message = Message()
    with pytest.raises(MemoryError):
        request(message).on_failure(info(MemoryError("x")))
    assert not message.done


def test_both_handlers_at_a_hard_limit_are_one_failure(keeper: Kept) -> None:
    """Prefork calls the handler of failures, and then that of time limits."""
    from billiard.exceptions import TimeLimitExceeded

    message = Message()
    one = request(message)
    one.on_failure(info(TimeLimitExceeded(3)))
    one.on_timeout(False, 3)
    assert len(keeper.put_in) == 1 and not message.done
    keeper.then[0]()
    assert message.done == ["ack"]


def test_a_hard_limit_alone_is_a_failure(keeper: Kept) -> None:
    message = Message()
    request(message).on_timeout(False, 3)
    assert [type(error).__name__ for error, _ in keeper.put_in] == ["TimeLimitExceeded"] and not message.done


def test_without_a_keeper_it_is_acknowledged_at_once() -> None:
    message = Message()
    request(message).on_failure(info(ValueError()), return_ok=True)
    assert message.done == ["ack"]
