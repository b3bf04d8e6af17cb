"""How soon the tasks of a worker that is gone run again, at the default settings: `python -m tests.faults.takeover`.

On each broker and pool, workers are killed with their containers, cut from the network, or frozen for a minute, each while it
runs one task. Two more workers consume the same queues. Writes reports/takeover.jsonl, of which the report of `make
test-faults` has the last outcomes. BROKER= and POOL= select pairs. The exit code is 1 if a promise was broken.
"""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from statistics import median
from typing import Any

from celery import Celery
from kombu.utils.uuid import uuid

from celery_kit.base.target import ROOT
from tests.faults.setup import Pair, Setup
from tests.harness.combinations import COMBINATIONS
from tests.harness.containers import clean
from tests.harness.waiting import until

NOTES = ROOT / "reports/takeover.jsonl"
#: The workers of each kind, and the tasks that each of them holds: a frozen one has prefetched those that it does not run.
KINDS = {"killed": (20, 1), "cut": (20, 1), "frozen": (5, 4)}
#: Seconds between two faults, and the seconds that a worker is frozen.
APART, FROZEN = 0.5, 60.0
#: Seconds of a task's first run: of one that is cut off, and of one whose time is over as its worker is thawed.
FIRST_RUN = {"killed": 600.0, "cut": 600.0, "frozen": FROZEN / 2}
#: Seconds until a task runs again: at most, and in the median.
MOST, MEDIAN = 20.0, 15.0
#: Seconds until the outcome is read, after the last of what is expected.
QUIET = 10.0


class Doomed:
    """A worker that runs one task of its own queue when its fault happens. `at`: when it happened (monotonic clock)."""

    def __init__(self, setup: Setup, kind: str, number: int) -> None:
        self.setup, self.kind, self.name = setup, kind, f"{kind}{number}"
        self.at = self.back = 0.0
        setup.start(self.name, TASK_TIME_LIMIT="0", arguments=("--concurrency", "1", "--queues", self.name))

    def send(self, app: Celery) -> None:
        """Send the task that it runs, and those that it only prefetches."""
        self.tasks = [uuid() for _ in range(KINDS[self.kind][1])]
        for place, task_id in enumerate(self.tasks):
            seconds = 0.0 if place else FIRST_RUN[self.kind]
            app.send_task("faults.first_long", (seconds,), task_id=task_id, queue=self.name)

    def runs(self, task_id: str) -> list[tuple[str, float]]:
        """The node and the time of each run of a task that has begun, in their order."""
        lines = self.setup.ledger.lines()
        return [(line.node.partition("@")[0], line.time) for line in lines if line.task == task_id and line.event == "begin"]

    def running(self) -> bool:
        return any(self.runs(task_id) for task_id in self.tasks)

    def happen(self) -> None:
        """Kill, cut or freeze it."""
        container = self.setup.workers[self.name]
        self.at = time.monotonic()
        if self.kind == "killed":
            container.kill(signal="KILL")
        elif self.kind == "cut":
            for network in (self.setup.broker_network, self.setup.results_network):
                network.disconnect(container, force=True)
        else:
            container.pause()

    def thaw(self) -> None:
        self.setup.workers[self.name].unpause()
        self.back = time.monotonic()

    def again(self) -> float | None:
        """Seconds from the fault until all of its tasks had begun at another worker. None: not yet."""
        others = [[at for node, at in self.runs(task_id) if node != self.name] for task_id in self.tasks]
        return round(max(min(times) for times in others) - self.at, 1) if all(others) else None

    def begun_late(self) -> int:
        """Tasks that it began after it was thawed, although another worker had got them."""
        return sum(node == self.name and at > self.back > 0 for task_id in self.tasks for node, at in self.runs(task_id))

    def most_runs(self) -> int:
        return max(len(self.runs(task_id)) for task_id in self.tasks)


def all_are(what: str, of: list[Doomed], test: Callable[[Doomed], Any], seconds: float) -> None:
    until(what, lambda: all(test(one) for one in of), seconds)


def trial(setup: Setup) -> dict[str, dict[str, Any]]:
    """The outcome by kind: `seconds` until the tasks of each worker ran again, `begun_late`, the `most_runs` of a task."""
    app = setup.app()
    doomed = [Doomed(setup, kind, number) for kind, (workers, _) in KINDS.items() for number in range(workers)]
    for one in doomed:
        setup.wait_for(one.name)
        one.send(app)
    all_are("each runs a task", doomed, Doomed.running, 60)
    heirs = ("one", "two")
    for name in heirs:
        setup.start(name, TASK_TIME_LIMIT="0", arguments=("--queues", ",".join(one.name for one in doomed)))
    for name in heirs:
        setup.wait_for(name)
    frozen = [one for one in doomed if one.kind == "frozen"]
    for one in in_turn(doomed):
        one.happen()
        time.sleep(APART)  # the interval between two faults: each is to meet the survivors at another moment of their lease
    until("the frozen ones were frozen for a minute", lambda: time.monotonic() - frozen[-1].at > FROZEN, FROZEN + 5)
    for one in frozen:
        one.thaw()
    try:
        all_are("each task ran again", doomed, Doomed.again, 60)
        time.sleep(QUIET)  # a thawed worker that begins what it no longer holds does so by now: nothing tells that it will not
    except AssertionError:
        pass  # the outcome tells it
    return {
        kind: {
            "seconds": [one.again() for one in doomed if one.kind == kind],
            "begun_late": sum(one.begun_late() for one in doomed if one.kind == kind),
            "most_runs": max(one.most_runs() for one in doomed if one.kind == kind),
        }
        for kind in KINDS
    }


def in_turn(doomed: list[Doomed]) -> Iterator[Doomed]:
    """One of each kind after the other."""
    return iter(sorted(doomed, key=lambda one: (int(one.name.removeprefix(one.kind)), one.kind)))


def kept(outcome: dict[str, dict[str, Any]]) -> bool:
    """Whether each promise was kept."""
    return all(
        None not in one["seconds"]
        and max(one["seconds"]) <= MOST
        and median(one["seconds"]) <= MEDIAN
        and one["begun_late"] == 0
        and one["most_runs"] <= 2
        for one in outcome.values()
    )


def cell(one: dict[str, Any]) -> str:
    """A short description of an outcome of one kind."""
    seen = sorted(seconds for seconds in one["seconds"] if seconds is not None)
    words = [f"{median(seen):.0f} s, at most {seen[-1]:.0f} s"] if seen else []
    words += [f"**{missing} not at all**"] if (missing := len(one["seconds"]) - len(seen)) else []
    words += [f"**{one['begun_late']} begun by the thawed worker**"] if one["begun_late"] else []
    words += [f"**run {one['most_runs']} times**"] if one["most_runs"] > 2 else []
    return ", ".join(words)


def table() -> str:
    """A row for each pair, from the last outcome of each."""
    found = [json.loads(line) for line in NOTES.read_text().splitlines()] if NOTES.exists() else []
    last = {f"{one['broker']} {one['pool']}": one for one in found}
    head = [f"{kind} ({workers} workers)" for kind, (workers, _) in KINDS.items()]
    rows = [f"| | {' | '.join(head)} | date |", "|" + " --- |" * (len(head) + 2)]
    for name, one in sorted(last.items()):
        rows.append(f"| {name} | {' | '.join(cell(one['kinds'][kind]) for kind in KINDS)} | {one['date']} |")
    return "\n".join(rows)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    pairs = [Pair(one.broker.name, one.pool) for one in COMBINATIONS if one.backend.name == "redis"]
    try:
        for pair in pairs:
            setup = Setup(pair)
            try:
                outcome = trial(setup)
            finally:
                setup.close()
            row = {"broker": pair.broker, "pool": pair.pool.name, "kinds": outcome, "date": f"{datetime.now(UTC):%F}"}
            NOTES.parent.mkdir(exist_ok=True)
            with NOTES.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(pair, {kind: cell(one) for kind, one in outcome.items()}, flush=True)
            code = code if kept(outcome) else 1
    finally:
        clean()
    sys.exit(code)


if __name__ == "__main__":
    main()
