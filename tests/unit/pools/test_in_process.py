"""Tasks in the worker's own process: whatever one raises is its end, and one that has expired does not begin."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import WorkerShutdown

from celery_kit.pools.in_process import InProcess


class Pool(InProcess):
    """Runs at once what it is given."""

    def on_apply(self, target: Callable[..., Any], args: Any, _: Any, callback: Callable[[Any], Any], **__: Any) -> None:
        callback(target(*args))


class Request:
    """As Celery's, as far as a pool sees it. `ends`: what became of its task."""

    task = SimpleNamespace(name="a.task")
    message = eta = None

    def __init__(self, expires: datetime | None = None) -> None:
        self.expires = expires
        self.request_dict: dict[str, Any] = {}
        self.delivery_info = {"routing_key": "celery"}
        self.ends: list[Any] = []

    def on_success(self, outcome: Any) -> None:
        self.ends.append(outcome)

    def on_failure(self, info: Any) -> None:
        self.ends.append(type(info.exception.exc if hasattr(info.exception, "exc") else info.exception))

    def _announce_revoked(self, *how: Any) -> None:
        self.ends.append(how)


def run(task: Callable[[], Any], request: Request, pool: Any = None) -> list[Any]:
    pool = pool or Pool()
    pool.apply_async(task, (), callback=request.on_success, error_callback=request.on_failure)
    return request.ends


def now(seconds: float = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


@pytest.mark.parametrize("expires", [None, now(86_400), now(86_400).replace(tzinfo=None)])
def test_a_task_that_has_not_expired_returns(expires: datetime | None) -> None:
    assert run(lambda: "done", Request(expires)) == ["done"]


def test_a_task_that_has_expired_does_not_begin() -> None:
    begun: list[bool] = []
    assert run(lambda: begun.append(True), Request(now(-1))) == [("expired", False, None, True)]
    assert not begun


@pytest.mark.parametrize("kind", [ValueError, GeneratorExit, SystemExit])
def test_whatever_a_task_raises_fails_it(kind: type[BaseException]) -> None:
    def task() -> None:
        raise kind

    assert run(task, Request()) == [kind]


def test_what_ends_the_worker_passes() -> None:
    def task() -> None:
        raise WorkerShutdown

    with pytest.raises(WorkerShutdown):
        run(task, Request())


def test_what_is_no_task_is_left_alone() -> None:
    found: list[Any] = []
    Pool().apply_async(lambda one: one, ("it",), callback=found.append)
    assert found == ["it"]


def test_a_failure_that_would_end_the_worker_from_a_callback_is_the_tasks() -> None:
    """Celery raises a task's MemoryError again where it is to end the worker: a thread would swallow it."""
    steps: list[str] = []

    def fails(_: Any, __: Any) -> None:
        raise MemoryError

    backend = SimpleNamespace(mark_as_failure=lambda *_, **__: steps.append("stored"))
    request: Any = Request()
    request.acknowledge = lambda: steps.append("acknowledged")
    request.on_failure = fails.__get__(request)
    request.id, request._context, request.store_errors = "1", None, True
    request.task = SimpleNamespace(name="a.task", backend=backend)

    def task() -> None:
        raise MemoryError

    threads = Pool()
    threads.signal_safe = False
    run(task, request, threads)
    assert steps == ["acknowledged", "stored"]
