"""What the workers did: each run is noted as a line in DATA_DIR/runs, and summed up once a day.

Lines are appended by one write for those of a moment, so that any number of workers and threads share a day's file without a
lock. A worker that is killed loses its last moment's notes.
"""

import atexit
import json
import logging
import os
import threading
import time
from collections import defaultdict, deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any

from celery import Task, shared_task
from celery.signals import task_postrun, task_prerun, worker_process_shutdown

from app.files import inside
from app.quick_json import quoted

logger = logging.getLogger(__name__)
KEEP_DAYS = 7
STARTED = "reports_started"  # on the task's request, in seconds of the monotonic clock
DAY = 86_400  # seconds
#: Lines that are written together at most, and the seconds that one waits for others at most. On a disk that servers make sync
#: all the time, a write for each task took a tenth of what a quick task costs.
LINES, SECONDS = 64, 0.1

_lines: deque[tuple[int, bytes]] = deque()  # by day
_some = threading.Event()


@task_prerun.connect(weak=False)
def _started(task: Task[Any, Any], **_: Any) -> None:
    setattr(task.request, STARTED, time.monotonic())


@task_postrun.connect(weak=False)
def _ended(task: Task[Any, Any], task_id: str, state: str | None = None, **_: Any) -> None:
    seconds = time.monotonic() - getattr(task.request, STARTED, time.monotonic())
    now = time.time()
    # JSON by hand: every task pays for this line.
    about = f'"task": {quoted(task.name)}, "id": {quoted(task_id)}, "state": {quoted(state or "IGNORED")}'
    _lines.append((int(now // DAY), f'{{"at": {now!r}, {about}, "seconds": {seconds!r}}}\n'.encode()))
    if not _some.is_set():
        _writer()
        _some.set()
    if len(_lines) >= LINES:
        write()


@atexit.register
def write() -> None:
    """Write what waits; from any thread."""
    taken = []
    with suppress(IndexError):  # other threads write, too
        while True:
            taken.append(_lines.popleft())
    for day, lines in groupby(taken, itemgetter(0)):
        os.write(_day(day), b"".join(line for _, line in lines))


@worker_process_shutdown.connect(weak=False)
def _write_last(**_: Any) -> None:
    write()  # a pool's child process ends without atexit


@cache
def _writer() -> None:
    """Has a thread write what has waited long enough."""

    def work() -> None:
        while _some.wait():
            time.sleep(SECONDS)
            _some.clear()
            try:
                write()
            except OSError as error:
                logger.error("what tasks did is not noted: %s", error)

    threading.Thread(target=work, name="reports", daemon=True).start()


def _begin_anew() -> None:
    """A child process has no thread of its parent's, and writes none of its lines."""
    global _some
    _lines.clear()
    _some = threading.Event()  # its parent may hold the other one's lock
    _writer.cache_clear()


os.register_at_fork(after_in_child=_begin_anew)


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
    write()
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
