"""What the workers ran: with REPORT_MEGABYTES each run is a line in DATA_DIR/runs, and :func:`statistics` sums them up.

Lines are appended in one write for all of a moment, so that any number of workers and threads share a day's file without a
lock. A worker that is killed loses the lines of its last moment. A file that is full takes no more; a week of files is kept.
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

from celery import Task
from celery.signals import task_postrun, task_prerun, worker_process_shutdown

from celery_kit.base.choices import data_dir, report_bytes
from celery_kit.base.signals import is_the_kits
from celery_kit.engine.quick_json import quoted

logger = logging.getLogger(__name__)
KEEP_DAYS = 7
STARTED = "run_started"  # on the task's request, in seconds of the monotonic clock
DAY = 86_400  # seconds
#: Lines that are written together at most, and the seconds that one waits for others at most. On a disk that servers make sync
#: all the time, a write for each task took a tenth of what a quick task costs.
LINES, SECONDS = 64, 0.1

_lines: deque[tuple[int, bytes]] = deque()  # by day
_some = threading.Event()
_writing = threading.Lock()
_file = (-1, -1)  # a day, and its file's number
_full = -1  # the last day whose file was


@cache
def connect() -> None:
    """Write down the runs of this process's tasks, where REPORT_MEGABYTES asks for it: every task pays for it."""
    if report_bytes():
        task_prerun.connect(_started, weak=False)
        task_postrun.connect(_ended, weak=False)
        worker_process_shutdown.connect(_write_last, weak=False)


def _started(task: "Task[Any, Any]", **_: Any) -> None:
    setattr(task.request, STARTED, time.monotonic())


def _ended(task: "Task[Any, Any]", task_id: str, state: str | None = None, **_: Any) -> None:
    if not is_the_kits(task.app):
        return
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
        logger.warning("no more runs are written down today: REPORT_MEGABYTES=%d are full", report_bytes() // 1_000_000)


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
                logger.error("runs are not written down: %s", error)

    threading.Thread(target=work, name="runs", daemon=True).start()


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
    folder = data_dir() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def statistics(since: datetime, until: datetime) -> dict[str, Any]:
    """Sum up the runs between two moments, by task: how many, in which states they ended, how long they took (seconds).

    Gives {"since": …, "until": …, "tasks": {name: {"runs": …, "states": {…}, "median_seconds": …, "longest_seconds": …}}}.
    It knows the runs alone that were written down: with REPORT_MEGABYTES, and until a day's file was full.
    """
    write()
    _delete_old(until)
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in sorted(_runs().glob("*.jsonl")):
        if path.stem >= f"{since:%Y-%m-%d}":
            for line in path.read_bytes().splitlines():
                with suppress(LookupError, TypeError, ValueError):  # half of one: its worker was killed, or the disk full
                    if since.timestamp() <= (run := json.loads(line))["at"] <= until.timestamp():
                        runs[run["task"]].append(run)
    tasks = {name: _sum_up(runs[name]) for name in sorted(runs)}
    return {"since": since.isoformat(), "until": until.isoformat(), "tasks": tasks}


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
