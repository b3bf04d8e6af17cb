"""A record of task runs: with REPORT_MEGABYTES each run is a line in DATA_DIR/runs. :func:`statistics` sums them up.

The lines of a tenth of a second are appended in one write, so that any number of workers and threads share a day's file without
a lock. A worker that is killed loses the lines that it has not written. A full file takes no more lines. Files are deleted
after a week.
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
from typing import TypedDict

from celery.signals import task_postrun, task_prerun, worker_process_shutdown

from celery_kit.base.choices import data_dir, report_bytes
from celery_kit.base.files import read_regular
from celery_kit.base.signals import is_the_kits
from celery_kit.base.types import AnyTask
from celery_kit.engine.quick_json import quoted

logger = logging.getLogger(__name__)
#: The most bytes of a file that is read.
MOST = 2**30
KEEP_DAYS = 7
STARTED = "run_started"  # attribute of the task's request, in seconds of the monotonic clock
DAY = 86_400  # seconds
#: At most so many lines are written together, and a line waits at most so many seconds for others. On a disk that servers sync
#: all the time, one write for each task took a tenth of the time of a quick task.
LINES, SECONDS = 64, 0.1


class Run(TypedDict):
    """A line of a file. `at`: the end of the run, in seconds since the epoch; `seconds`: its duration."""

    at: float
    task: str
    id: str
    state: str
    seconds: float


class Summary(TypedDict):
    """The runs of one task, with their durations in seconds."""

    runs: int
    states: dict[str, int]
    median_seconds: float
    longest_seconds: float


class Statistics(TypedDict):
    """The runs between two moments (ISO 8601), by task."""

    since: str
    until: str
    tasks: dict[str, Summary]


_lines: deque[tuple[int, bytes]] = deque()  # each with its day, in days since the epoch
_some = threading.Event()
_writing = threading.Lock()
_file = (-1, -1)  # the day and the descriptor of the open file
_full = -1  # the last day whose file was full


@cache
def connect() -> None:
    """Record the runs of this process's tasks, if REPORT_MEGABYTES is set. Off by default, because it costs each task some
    time.
    """
    if report_bytes():
        task_prerun.connect(_started, weak=False)
        task_postrun.connect(_ended, weak=False)
        worker_process_shutdown.connect(_write_last, weak=False)


def _started(task: AnyTask, **_: object) -> None:
    setattr(task.request, STARTED, time.monotonic())


def _ended(task: AnyTask, task_id: str, state: str | None = None, **_: object) -> None:
    if not is_the_kits(task.app):
        return
    seconds = time.monotonic() - getattr(task.request, STARTED, time.monotonic())
    now = time.time()
    # JSON by hand, because each task pays for this line.
    about = f'"task": {quoted(task.name)}, "id": {quoted(task_id)}, "state": {quoted(state or "IGNORED")}'
    _lines.append((int(now // DAY), f'{{"at": {now!r}, {about}, "seconds": {seconds!r}}}\n'.encode()))
    if not _some.is_set():
        _writer()
        _some.set()
    if len(_lines) >= LINES:
        write()


@atexit.register
def write() -> None:
    """Write the lines that wait. Any thread may call it. Raises OSError."""
    taken = []
    with suppress(IndexError):  # other threads take lines at the same time
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
        logger.warning("no more runs are recorded today: REPORT_MEGABYTES=%d are full", report_bytes() // 1_000_000)


def _write_last(**_: object) -> None:
    write()  # a pool's child process exits without running atexit's functions


@cache
def _writer() -> None:
    """Start the thread that writes lines which have waited long enough."""

    def work() -> None:
        while _some.wait():
            time.sleep(SECONDS)
            _some.clear()
            try:
                write()
            except Exception as error:  # later lines need this thread
                logger.error("runs are not recorded: %s", error)

    threading.Thread(target=work, name="runs", daemon=True).start()


def _reset() -> None:
    """In a forked child: drop the parent's lines, and start a thread when the next one comes."""
    global _some, _writing
    _lines.clear()
    _some, _writing = threading.Event(), threading.Lock()  # a thread of the parent may hold the old ones
    _writer.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset)


def _of_day(number: int) -> int:
    """The descriptor of a day's file. It stays open, because opening it for each write would cost more than all else here."""
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


def statistics(since: datetime, until: datetime) -> Statistics:
    """Sum up the recorded runs between two moments, by task: how many, their final states, their durations.

    Runs are recorded only with REPORT_MEGABYTES, and until a day's file is full.
    """
    write()
    _delete_old(until)
    runs: dict[str, list[Run]] = defaultdict(list)
    for path in sorted(_runs().glob("*.jsonl")):
        if path.stem >= f"{since:%Y-%m-%d}":
            for line in _read(path):
                # Half a line: its worker was killed, or the disk full. And anybody can write there.
                with suppress(LookupError, TypeError, ValueError, RecursionError):
                    run = json.loads(line)
                    if since.timestamp() <= run["at"] <= until.timestamp():
                        run |= {"state": str(run["state"]), "seconds": float(run["seconds"])}
                        runs[str(run["task"])].append(run)
    tasks = {name: _sum_up(runs[name]) for name in sorted(runs)}
    return {"since": since.isoformat(), "until": until.isoformat(), "tasks": tasks}


def _read(path: Path) -> list[bytes]:
    """A file's lines; none of what is no file of ours."""
    try:
        return read_regular(path, MOST).splitlines()
    except OSError as error:
        logger.warning("runs are not counted: %s", error)
        return []


def _sum_up(runs: list[Run]) -> Summary:
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
