"""What the workers did: with REPORT_MEGABYTES each run is noted as a line in DATA_DIR/runs, and summed up once a day.

Lines are appended by one write for those of a moment, so that any number of workers and threads share a day's file without a
lock. A worker that is killed loses its last moment's notes. A day's file that is full takes no more; a week of them is kept.
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

from celery_kit.base.choices import report_bytes
from celery_kit.engine.quick_json import quoted
from celery_kit.files import inside

logger = logging.getLogger(__name__)
KEEP_DAYS = 7
STARTED = "reports_started"  # on the task's request, in seconds of the monotonic clock
DAY = 86_400  # seconds
#: Lines that are written together at most, and the seconds that one waits for others at most. On a disk that servers make sync
#: all the time, a write for each task took a tenth of what a quick task costs.
LINES, SECONDS = 64, 0.1

_lines: deque[tuple[int, bytes]] = deque()  # by day
_some = threading.Event()
_writing = threading.Lock()
_file = (-1, -1)  # a day, and its file's number
_full = -1  # the last day whose file was


def _started(task: Task[Any, Any], **_: Any) -> None:
    setattr(task.request, STARTED, time.monotonic())


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
    with _writing:
        for day, lines in groupby(taken, itemgetter(0)):
            _append(day, b"".join(line for _, line in lines))


def _append(day: int, lines: bytes) -> None:
    global _full
    file = _of_day(day)
    if os.fstat(file).st_size + len(lines) <= report_bytes():
        os.write(file, lines)
    elif _full != day:
        _full = day
        logger.warning("no more of what tasks do is noted today: REPORT_MEGABYTES=%d are full", report_bytes() // 1_000_000)


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
            except Exception as error:  # the next lines have no other thread
                logger.error("what tasks did is not noted: %s", error)

    threading.Thread(target=work, name="reports", daemon=True).start()


def _begin_anew() -> None:
    """A child process has no thread of its parent's, and writes none of its lines."""
    global _some, _writing
    _lines.clear()
    _some, _writing = threading.Event(), threading.Lock()  # its parent may hold the others
    _writer.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _of_day(number: int) -> int:
    """A day's file, which stays open: to open it for each write would cost more than all else here."""
    global _file
    if _file[0] != number:
        path = _runs() / f"{datetime.fromtimestamp(number * DAY, UTC):%Y-%m-%d}.jsonl"
        before, _file = _file[1], (number, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644))
        if before >= 0:
            os.close(before)
        _delete_old(datetime.now(UTC))
    return _file[1]


def _delete_old(now: datetime) -> None:
    for path in _runs().glob("*.jsonl"):
        if path.stem < f"{now - timedelta(days=KEEP_DAYS):%Y-%m-%d}":
            path.unlink(missing_ok=True)


@cache
def _runs() -> Path:
    return inside("runs/today").parent


@shared_task
def daily_statistics() -> dict[str, Any]:
    """Sum up the last 24 hours, task by task: how often it ended in which state, how long it took (seconds).

    The sum is also kept as DATA_DIR/reports/<date>.json. Of runs that were not noted - REPORT_MEGABYTES is 0, or was full -
    nothing is known.
    """
    write()
    until = datetime.now(UTC)
    _delete_old(until)
    since = until - timedelta(days=1)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(_runs().glob("*.jsonl")):
        if path.stem >= f"{since:%Y-%m-%d}":
            for line in path.read_bytes().splitlines():
                with suppress(LookupError, TypeError, ValueError):  # half of one: its worker was killed, or the disk full
                    if (run := json.loads(line))["at"] >= since.timestamp():
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


if report_bytes():  # every task of every worker pays for it
    task_prerun.connect(_started, weak=False)
    task_postrun.connect(_ended, weak=False)
    worker_process_shutdown.connect(_write_last, weak=False)
