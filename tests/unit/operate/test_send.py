"""What `make send` checks before it sends a task."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task

from celery_kit.base.target import ROOT
from celery_kit.operate.look import send


def double(size: int) -> int:
    return 2 * size


def test_the_arguments_of_a_function_are_checked_and_those_of_a_class_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Celery("shop", set_as_current=False)
    plain: Any = type("Plain", (Task,), {"name": "plain", "run": lambda self, size: size})
    app.register_task(plain())
    app.task(name="double", shared=False)(double)
    app.finalize()
    monkeypatch.setattr(send, "tasks", lambda: app.tasks)
    one: list[object] = [1]
    send._check_arguments("plain", one * 2, {})
    send._check_arguments("double", one, {})
    with pytest.raises(SystemExit, match="2"):
        send._check_arguments("double", one * 2, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 60_000, f"ARGS={'[' * 100} is not JSON (maximum recursion depth exceeded"),
        (f"{'[' * 300}{']' * 300}", f"ARGS={'[' * 100} is refused by workers: it is nested deeper than 200 levels"),
        ("[NaN]", "ARGS=[NaN] is not JSON (NaN is no number of JSON); allowed: an array, such as"),
        ("[-Infinity]", "ARGS=[-Infinity] is not JSON (-Infinity is no number of JSON)"),
        (f"[{'1' * 5_000}]", f"ARGS=[{'1' * 99} is not JSON (Exceeds the limit"),
        ("\x1b[2J", "ARGS=\\x1b[2J is not JSON"),
        ('{"a": 1}', 'ARGS={"a": 1} is not an array'),
    ],
)
def test_what_no_worker_would_take_is_refused_in_one_line(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        send._json("ARGS", text, list)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"celery-kit: {said}")


@pytest.mark.parametrize("command", [("forward",), ("mail.send_email", '["a@b.c", "hi"]')])
def test_a_spool_that_others_can_write_to_is_refused_in_one_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    folder.chmod(0o777)
    environ = {**os.environ, "SPOOL": str(folder), "CELERY_BROKER_URL": "redis://127.0.0.1:1"}
    argv = [sys.executable, "-m", "celery_kit.operate.look.send", *command]
    done = subprocess.run(argv, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    why = "others may write to it (mode 0777): chmod go-w"
    assert (done.returncode, done.stderr) == (2, f"celery-kit: SPOOL={folder} cannot be used: {why}\n")
