"""The trials: what each part of the crash test does to a setup, and what it records."""

import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from celery_kit.pools.table import POOLS
from tests.crash.setup import ALL_ENGINES, BROKERS, QUIET, Setup
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY, kill

TASKS = 3_000
KILLS = 20
#: The same while messages arrive: number of kills, and of messages that wait at a time.
MORE_KILLS, FEW = 50, 20
#: Tasks with events enabled; seconds to wait for the worker to run them.
WATCHED, WATCHED_SECONDS = 12_000, 90.0
#: Number of restores; of runs that may stall, and of those with plain Celery, which are slow.
RESTORES, STALL_RUNS, FEW_RUNS = 5, 20, 5
#: The time limit of a restore in seconds, far above any that was seen.
NEVER = 60.0
GREEN = tuple(name for name, pool in POOLS.items() if pool.sockets_patched)
Figures = dict[str, Any]


def killed(setup: Setup, kills: int, waiting: int) -> Figures:
    """TASKS short tasks, SIGKILLs at random moments, and a new worker after each. `waiting`: messages that wait at a time."""
    done_at_kill = []
    setup.send("short", 0)  # the producer has started
    for number in range(1, kills + 1):
        worker = setup.worker()
        reached = _work_on(setup, (number + random.random()) * TASKS / (kills + 2), waiting)
        time.sleep(random.uniform(0, 0.02))  # a kill at any moment, not only when a task begins
        kill(worker)
        if not reached:
            break
        done_at_kill.append(setup.done())
    setup.worker()
    _work_on(setup, TASKS, waiting)
    setup.settle()
    executions, stored = setup.executions(), setup.stored()
    return {
        "tasks": setup.sent,
        "kills": len(done_at_kill),
        "last_kill_at": max(done_at_kill, default=0),
        "results": stored,
        "never_run": setup.sent - len(executions),
        "left": setup.left(),
        "executions": sum(executions),
        "twice": sum(times > 1 for times in executions),
        "most": max(executions, default=0),
    }


def _work_on(setup: Setup, goal: float, waiting: int) -> bool:
    """Wait until some number of tasks were begun, with at most `waiting` sent ahead. False if there is no progress."""
    last, since = -1, time.monotonic()
    while (done := setup.done()) < goal or setup.sent < goal:
        if done != last:
            last, since = done, time.monotonic()
        if time.monotonic() > since + QUIET[setup.broker] and setup.sent >= min(TASKS, done + waiting):
            return False
        if (more := min(TASKS - setup.sent, done + waiting - setup.sent, 200)) > 0:
            setup.send("short", more)
        else:
            time.sleep(0.001)  # the queue is full: wait until a task has begun
    return True


def sigkill(setup: Setup) -> Figures:
    return killed(setup, KILLS, TASKS)


def arriving(setup: Setup) -> Figures:
    return killed(setup, MORE_KILLS, FEW)


def restore(setup: Setup) -> Figures:
    """Kill a busy worker. Measures the seconds until another one, running and idle, has done all tasks that it held."""
    seconds: list[float | None] = []
    for _ in range(RESTORES):
        held = setup.concurrency
        before = setup.done()
        worker = setup.worker()
        setup.send("held", held)
        until("all are begun", lambda n=before + held: setup.done() == n)  # type: ignore[misc]
        kill(worker)
        began = time.monotonic()
        second = setup.worker()
        with suppress(AssertionError):
            until("all are done", lambda: setup.stored() == setup.sent, NEVER)
        seconds.append(round(time.monotonic() - began, 1) if setup.stored() == setup.sent else None)
        kill(second)
        if seconds[-1] is None:
            break
    return {"held": setup.concurrency, "seconds_each": seconds, "left": setup.left()}


def events(setup: Setup) -> Figures:
    """A worker with -E and Flower on a deep queue. Samples the time and the worker's CPU seconds at each hundred tasks."""
    setup.send("nothing", WATCHED)
    port = 15_555 + random.randrange(1_000)
    with setup.flower(port) as url:
        worker = setup.worker("-E")
        until("it works", setup.done, 60)
        began, done, marks, cpu = time.monotonic(), 0, [0.0], [_cpu(worker.pid)]
        while done < WATCHED and time.monotonic() < began + WATCHED_SECONDS:
            time.sleep(0.01)  # the interval between two samples
            done = setup.done()
            marks += [round(time.monotonic() - began, 2)] * (more := done // 100 + 1 - len(marks))
            cpu += [_cpu(worker.pid)] * more
        with suppress(AssertionError):  # Flower may lag
            until("Flower has seen each", lambda: _succeeded(url) >= done, 30, every=1)
        seen = _succeeded(url)
        return {"tasks": WATCHED, "done": done, "marks": marks, "cpu": cpu, "window": 4 * setup.concurrency, "flower": seen}


def _cpu(pid: int) -> float:
    """CPU time of a process, in seconds. Source: proc(5), utime and stime."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)


def _succeeded(url: str) -> int:
    lines = requests.get(url, timeout=20).text.splitlines()
    return int(
        sum(float(one.split()[-1]) for one in lines if one.startswith("flower_events_total") and '"task-succeeded"' in one)
    )


def _awake(pid: int) -> float:
    """Seconds in which a process's first thread ran or waited for a core. Source: Linux, scheduler/sched-stats.rst."""
    on_cpu, waited, _ = Path(f"/proc/{pid}/schedstat").read_text().split()
    return (int(on_cpu) + int(waited)) / 1e9


def stall(setup: Setup) -> Figures:
    """Workers with prefetch 4, each with TASKS tasks that do nothing.

    Returns their rates, the longest time without a task, and the fraction of the run in which the loop slept.
    """
    rates, pauses, asleep = [], [], []
    for _ in range(FEW_RUNS if setup.engine == PLAIN_CELERY else STALL_RUNS):
        before = setup.done()
        setup.send("nothing", TASKS)
        worker = setup.worker("--prefetch-multiplier", "4")
        until("it works", lambda n=before: setup.done() > n, 60)  # type: ignore[misc]
        began = since = time.monotonic()
        first = done = setup.done()
        pause, awake = 0.0, _awake(worker.pid)
        while done < before + TASKS and time.monotonic() < since + QUIET[setup.broker]:
            time.sleep(0.005)  # the interval between two samples: the time between two tasks is measured
            if (now := setup.done()) != done:
                pause, since, done = max(pause, time.monotonic() - since), time.monotonic(), now
        rates.append(round((done - first) / (since - began)))
        asleep.append(round(1 - (_awake(worker.pid) - awake) / (time.monotonic() - began), 2))
        pauses.append(round(pause, 3))
        if done < before + TASKS:
            break
        until("each has its result", lambda n=before: setup.stored(n) == TASKS)  # type: ignore[misc]
        worker.terminate()
        worker.wait(60)
    missing = setup.sent - setup.stored()
    return {"tasks": TASKS, "runs": len(rates), "missing": missing, "rates": rates, "pauses": pauses, "asleep": asleep}


@dataclass(frozen=True)
class Part:
    """A part of the crash test. `run(setup)`: runs one trial, and returns its figures. `of`: its brokers, pools and engines."""

    run: Callable[[Setup], Figures]
    brokers: tuple[str, ...] = BROKERS
    pools: tuple[str, ...] = tuple(POOLS)
    engines: tuple[str, ...] = ALL_ENGINES
    concurrency: int | None = None


PARTS = {
    "sigkill": Part(sigkill),
    "arriving": Part(arriving, ("redis",), ("solo", "prefork", "gevent"), ("fast", PLAIN_CELERY)),
    "restore": Part(restore, ("redis",), GREEN),
    "events": Part(events, ("rabbitmq",), GREEN, concurrency=50),
    "stall": Part(stall, BROKERS, ("solo", "threads", "prefork")),
}


def trials(part: str, broker: str, pools: tuple[str, ...], engines: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The selected pools and engines of a part on a broker, with the engines of a pool next to each other."""
    row = PARTS[part]
    for pool in row.pools if broker in row.brokers else ():
        for engine in row.engines:
            if pool in pools and engine in engines:
                yield pool, engine
