"""What `make result` shows of what is stored, whoever has stored it."""

import json
import sys
from typing import Any

import pytest
from celery import Celery

from celery_kit.operate.look import result


def stored(monkeypatch: pytest.MonkeyPatch, value: bytes) -> None:
    """Have the command find this in the place of the result of the task `one`."""
    app = Celery("reader", backend="cache+memory://", set_as_current=False)
    backend: Any = app.backend
    backend.client.set(backend.get_key_for_task("one"), value)
    monkeypatch.setattr(result, "app", app)
    monkeypatch.setattr(sys, "argv", ["result", "one"])


@pytest.mark.parametrize("value", [b"x", b"[5]", b"\xff\xfe", b"[" * 100_000 + b"]" * 100_000, b'{"status": 5}', b"5"])
def test_what_is_no_result_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: bytes
) -> None:
    stored(monkeypatch, value)
    with pytest.raises(SystemExit, match="2"):
        result.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celery-kit: what is stored for ID=one is no result (") and len(line) < 250


def test_nothing_of_a_result_controls_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    red = "\x1b[31m"
    error = {"exc_type": "ValueError", "exc_module": "builtins", "exc_message": [red]}
    stored(monkeypatch, json.dumps({"status": "FAILURE", "result": error, "traceback": f"line\n{red}"}).encode())
    result.main()
    shown = capsys.readouterr().out
    assert "\\x1b[31m" in shown and "line\n" in shown and red not in shown
