"""Workers that are made, and not started."""

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from celery import _state

trace: Any = import_module("celery.app.trace")


@pytest.fixture
def made_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever makes a worker says so in Celery's own state, which the tests after this one would see."""
    monkeypatch.setattr("celery._state._task_join_will_block", False)
    known = list(trace._localized)
    for name in ("default_app", "_tls.current_app"):
        monkeypatch.setattr(f"celery._state.{name}", vars(_state)["get_current_app"]())
    yield
    trace._localized[:] = known
