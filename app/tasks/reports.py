"""What the workers did: each run is noted as a line in DATA_DIR/runs, and summed up once a day.

A line is appended by one small write, so that any number of workers and threads share a day's file without a lock.
"""

import json
import os
import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from celery import Task, shared_task
from celery.signals import task_postrun, task_prerun

from app.files import inside

KEEP_DAYS = 7
STARTED = "reports_started"  # on the task's request, in seconds of the monotonic clock
DAY = 86_400  # seconds

_quoted = json.encoder.encode_basestring_ascii


@task_prerun.connect(weak=False)
def _started(task: Task[Any, Any], **_: Any) -> None:
    setattr(task.request, STARTED, time.monotonic())


@task_postrun.connect(weak=False)
def _ended(task: Task[Any, Any], task_id: str, state: str | None = None, **_: Any) -> None:
    seconds = time.monotonic() - getattr(task.request, STARTED, time.monotonic())
    now = time.time()
    # JSON by hand: every task pays for this line.
    about = f'"task": {_quoted(task.name)}, "id": {_quoted(task_id)}, "state": {_quoted(state or "IGNORED")}'
    os.write(_day(int(now // DAY)), f'{{"at": {now!r}, {about}, "seconds": {seconds!r}}}\n'.encode())


@cache
def _day(number: int) -> int:
    """A day's file, which stays open: to open it for each task would cost more than all else here."""
    name = f"{datetime.fromtimestamp(number * DAY, UTC):%Y-%m-%d}.jsonl"
    return os.open(_runs() / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


@cache
def _runs() -> Path:
    return inside("runs/today").parent


@shared_task
def daily_statistics() -> dict[str, Any]:
    """Sum up the last 24 hours, task by task: how often it ended in which state, how long it took (seconds).

    The sum is also kept as DATA_DIR/reports/<date>.json. Notes older than a week are deleted.
    """
    until = datetime.now(UTC)
    since = until - timedelta(days=1)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(_runs().glob("*.jsonl")):
        if path.stem < f"{until - timedelta(days=KEEP_DAYS):%Y-%m-%d}":
            path.unlink(missing_ok=True)
        elif path.stem >= f"{since:%Y-%m-%d}":
            for run in map(json.loads, path.read_text().splitlines()):
                if run["at"] >= since.timestamp():
                    runs[run["task"]].append(run)
    report = {
        "since": since.isoformat(),
        "until": until.isoformat(),
        "tasks": {name: _sum_up(runs[name]) for name in sorted(runs)},
    }
    target = inside(f"reports/{until:%Y-%m-%d}.json")
    draft = target.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps(report, indent=2))
    draft.replace(target)  # a reader never sees half a report
    return report


def _sum_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    states: dict[str, int] = defaultdict(int)
    for run in runs:
        states[run["state"]] += 1
    seconds = [run["seconds"] for run in runs]
    return {
        "runs": len(runs),
        "states": dict(sorted(states.items())),
        "median_seconds": round(median(seconds), 4),
        "longest_seconds": round(max(seconds), 4),
    }
