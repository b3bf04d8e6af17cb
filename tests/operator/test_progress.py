"""The progress of a task, as another process sees it, on every pool."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from celery import Celery

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until
from tests.operator.conftest import Machine


def looked_up(machine: Machine, task_id: str) -> dict[str, Any]:
    """The output of `python -m celery_kit.operate.look.result` in another process."""
    done = subprocess.run(
        [sys.executable, "-m", "celery_kit.operate.look.result", "--json", task_id],
        cwd=ROOT,
        env={**os.environ, **machine.environ},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("pool", POOLS)
def test_another_process_sees_how_far_a_task_is_and_follows_it(machine: Machine, app: Celery, pool: str) -> None:
    machine.worker(pool)
    gate = machine.folder / "gate"
    sent = app.send_task("tests.operator.probes.count", [10, str(gate)])
    until("it is half way", lambda: str(sent.state) == "PROGRESS" and sent.info.get("current") == 5, 30)
    found = looked_up(machine, sent.id)
    assert (found["state"], found["value"]) == ("PROGRESS", None)
    assert found["progress"] == {"current": 5, "total": 10, "text": "half way"}

    follower = subprocess.Popen(
        [sys.executable, "-m", "celery_kit.operate.look.watch", sent.id],
        cwd=ROOT,
        env={**os.environ, **machine.environ, "TTY_COMPATIBLE": "1", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert follower.stdout
    line = ""
    while "half way" not in line:
        line = follower.stdout.readline()
        assert line, "it ended before it had drawn anything"
    assert "5/10" in line
    gate.touch()
    rest = follower.stdout.read()
    assert follower.wait(30) == 0
    assert "state     SUCCESS" in rest and "value     10" in rest


def test_progress_outside_of_a_task_only_counts() -> None:
    """In a test or a shell, a task's function is an ordinary one."""
    from celery_kit.progress import progress

    assert list(progress([1, 2])) == [1, 2]
