"""What a worker's connection does before the loop's first poll."""

from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.fixes import quick_drain

loops: Any = import_module("celery.worker.loops")


@pytest.fixture
def drain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fix's, in the place of Celery's own for as long as the test lasts."""
    monkeypatch.setattr(loops, "_quick_drain", loops._quick_drain)
    quick_drain._patch()
    yield loops._quick_drain


def test_what_there_is_is_read_and_nothing_more_is_waited_for(drain: Any) -> None:
    waits: list[float] = []
    drain(SimpleNamespace(drain_events=lambda timeout: waits.append(timeout)))
    assert waits == [quick_drain.WAIT]


def test_nothing_to_read_is_no_error_and_a_lost_connection_is(drain: Any) -> None:
    def fails(error: Exception) -> Any:
        def drain_events(timeout: float) -> None:
            raise error

        return SimpleNamespace(drain_events=drain_events)

    drain(fails(TimeoutError()))
    with pytest.raises(ConnectionResetError):
        drain(fails(ConnectionResetError(104, "reset")))
