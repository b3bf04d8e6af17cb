"""Debugging a task: run it in this process, or stop at a breakpoint."""

import os
import re
import shutil
import socket
import subprocess
import sys

import pytest
from celery import Celery

from celery_kit.base.target import ROOT
from tests.harness.terminal import Terminal
from tests.harness.waiting import until
from tests.operator.conftest import Machine

TASK = """
from celery import shared_task

@shared_task
def stop(number: int) -> int:
    breakpoint()
    return number + 1
"""


EAGER = """
from celery_kit.produce.send import send
from app.tasks.workflows import count

for sent in count.delay(["one"], "picture"), send("workflows.count", [["one", "two"], "picture"]):
    print(sent.state, sent.get()["sent"])
"""


def test_a_breakpoint_has_the_terminal(machine: Machine, app: Celery) -> None:
    """On the solo pool the task stops at breakpoint(), answers to input, and goes on."""
    folder = machine.folder / "code"
    for package in ("app", "celery_kit"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "app/tasks/debug.py").write_text(TASK)
    environ = {**os.environ, **machine.environ, "POOL": "solo", "LOG_FORMAT": "text"}
    terminal = Terminal(sys.executable, "-m", "celery_kit.operate.stacks.dev", cwd=folder, environ=environ)
    try:
        terminal.shows("ready.")
        result = app.send_task("debug.stop", [6])
        terminal.shows("(Pdb) ")
        terminal.type("print(number * 7)")
        terminal.shows("42\r\n")
        terminal.type("continue")
        assert result.get(timeout=30) == 7
    finally:
        terminal.process.terminate()  # `make dev` stops its worker
        terminal.process.wait(20)


def test_a_remote_breakpoint_is_reached_by_telnet(machine: Machine, app: Celery) -> None:
    """Celery's debugger celery.contrib.rdb, for pools whose tasks have no terminal, waits on a port of this machine."""
    worker = machine.worker("prefork")
    result = app.send_task("tests.operator.probes.stop", [6])

    def port() -> str | None:
        found = re.search(r"telnet 127\.0\.0\.1 (\d+)", worker.said)
        return found and found[1]

    with socket.create_connection(("127.0.0.1", int(until("it names its port", port, 30) or 0)), 30) as telnet:

        def shows(words: bytes) -> None:
            read = b""
            while words not in read:
                read += telnet.recv(4_096) or pytest.fail(f"it hung up after {read!r}")

        shows(b"(Pdb) ")
        telnet.sendall(b"print(number * 7)\n")
        shows(b"42\n(Pdb) ")
        telnet.sendall(b"continue\n")
    assert result.get(timeout=30) == 7


def test_a_task_runs_where_it_stands_with_no_broker() -> None:
    """TASK_ALWAYS_EAGER=1: delay() runs the task in this process. The broker named here does not exist."""
    environ = {**os.environ, "CELERY_BROKER_URL": "redis://127.0.0.1:1", "TASK_ALWAYS_EAGER": "1"}
    done = subprocess.run([sys.executable, "-c", EAGER], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["SUCCESS", "1", "SUCCESS", "2"]
