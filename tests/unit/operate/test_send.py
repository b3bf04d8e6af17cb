"""What `make send` checks before it sends a task."""

from typing import Any

import pytest
from celery import Celery, Task

from celery_kit.operate.look import send


def double(size: int) -> int:
    return 2 * size


def test_the_arguments_of_a_function_are_checked_and_those_of_a_class_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", set_as_current=False)
    plain: Any = type("Plain", (Task,), {"name": "plain", "run": lambda self, size: size})
    app.register_task(plain())
    app.task(name="double")(double)
    app.finalize()
    monkeypatch.setattr(send, "tasks", lambda: app.tasks)
    one: list[object] = [1]
    send._check_arguments("plain", one * 2, {})
    send._check_arguments("double", one, {})
    with pytest.raises(SystemExit, match="2"):
        send._check_arguments("double", one * 2, {})
