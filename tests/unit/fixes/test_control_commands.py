"""Remote control commands: fix early_revoked."""

from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.backends.base import Backend
from celery.worker import state

from celery_kit.fixes import control_commands


def test_the_command_marks_no_running_task_and_its_worker_does(monkeypatch: pytest.MonkeyPatch) -> None:
    marked: list[str] = []
    running: Any = SimpleNamespace(id="running", chord=None)
    monkeypatch.setattr(Backend, "mark_as_revoked", lambda _self, task_id, *_, **__: marked.append(task_id))
    monkeypatch.setattr(state, "active_requests", {running.id: running}.values())
    control_commands.early_revoked()
    backend = Backend(Celery("some", set_as_current=False))
    for task_id in ("waiting", "running"):
        backend.mark_as_revoked(task_id, reason="revoked", store_result=True)
    assert marked == ["waiting"]
    backend.mark_as_revoked("running", "terminated", request=running, store_result=True)
    assert marked == ["waiting", "running"]
