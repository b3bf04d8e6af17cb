"""How soon the tasks of a worker that is gone run again, at the default settings: `python -m tests.faults.takeover`.

On each broker and pool, workers are killed with their containers, cut from the network, or frozen for a minute, each while it
runs one task. Two more workers consume the same queues. The embedded broker's workers are processes of this machine, which are
killed or frozen. Writes reports/takeover.jsonl, of which the report of `make test-faults` has the last outcomes. BROKER= and
POOL= select pairs, the argument `embedded` those without containers. The exit code is 1 if a promise was broken.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from celery import Celery
from kombu.utils.uuid import uuid

from celery_kit import Kit
from celery_kit.base.target import ROOT
from tests.faults.ledger import Ledger
from tests.faults.setup import Pair, Setup
from tests.harness.combinations import COMBINATIONS
from tests.harness.containers import clean
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import Process

NOTES = ROOT / "reports/takeover.jsonl"
#: The workers of each kind, and the tasks that each of them holds: a frozen one has prefetched those that it does not run.
KINDS = {"killed": (20, 1), "cut": (20, 1), "frozen": (5, 4)}
#: The broker without containers, whose workers no network can be taken from.
EMBEDDED = "embedded"
#: Seconds between two faults, and the seconds that a worker is frozen.
APART, FROZEN = 0.5, 60.0
#: Seconds of a task's first run: of one that is cut off, and of one whose time is over as its worker is thawed.
FIRST_RUN = {"killed": 600.0, "cut": 600.0, "frozen": FROZEN / 2}
#: Seconds until a task runs again: at most, and in the median.
MOST, MEDIAN = 20.0, 15.0
#: Seconds until the outcome is read, after the last of what is expected.
QUIET = 10.0


class OwnProcess(Process):
    """A worker of this machine, with what is done to a container."""

    def kill(self, signal: str = "KILL") -> None:
        super().kill()

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def unpause(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)


class OwnMachine:
    """As Setup, for the embedded broker: its server, and workers that are processes."""

    def __init__(self, pair: Pair) -> None:
        self.pair, self.server, self.workers = pair, Server(), dict[str, OwnProcess]()
        self.folder = Path(self.server.folder.name)
        self.ledger = Ledger(self.folder / "effects")
        self.environ = {**self.server.urls, "BROKER": EMBEDDED, "POOL": pair.pool.name, "EFFECTS": str(self.folder)}

    def start(self, name: str, arguments: Sequence[str] = (), **environ: str) -> None:
        argv = ["-m", "app.worker", "-I", "tests.faults.inside.fault_probe", "--hostname", f"{name}@worker", *arguments]
        self.workers[name] = OwnProcess(argv, self.folder / f"{name}.log", {**self.environ, **environ})

    def wait_for(self, name: str) -> None:
        until(f"worker {name} consumes", lambda: self.ledger.ready(f"{name}@worker"), 90)

    def app(self) -> Celery:
        app = Kit("takeover", set_as_current=False)
        app.conf.update(broker_url=self.server.urls["CELERY_BROKER_URL"])
        return app

    def close(self) -> None:
        for one in self.workers.values():
            one.kill()
        self.server.stop()


class Doomed:
    """A worker that runs one task of its own queue when its fault happens. `at`: when it happened (monotonic clock)."""

    def __init__(self, setup: Setup | OwnMachine, kind: str, number: int) -> None:
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
        elif self.kind == "cut" and isinstance(self.setup, Setup):
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


def kinds(pair: Pair) -> list[str]:
    """What can happen to the workers of a pair."""
    return [kind for kind in KINDS if kind != "cut" or pair.broker != EMBEDDED]


def trial(setup: Setup | OwnMachine) -> dict[str, dict[str, Any]]:
    """The outcome by kind: `seconds` until the tasks of each worker ran again, `begun_late`, the `most_runs` of a task."""
    app = setup.app()
    doomed = [Doomed(setup, kind, number) for kind in kinds(setup.pair) for number in range(KINDS[kind][0])]
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
        for kind in kinds(setup.pair)
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
        cells = (cell(one["kinds"][kind]) if kind in one["kinds"] else "—" for kind in KINDS)
        rows.append(f"| {name} | {' | '.join(cells)} | {one['date']} |")
    return "\n".join(rows)


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    code = 0
    pairs = [Pair(one.broker.name, one.pool) for one in COMBINATIONS if one.backend.name == "redis"]
    here = [Pair(EMBEDDED, pool) for pool in {pair.pool.name: pair.pool for pair in pairs}.values()]
    pairs = here if sys.argv[1:] == [EMBEDDED] else [*pairs, *([] if os.environ.get("BROKER") else here)]
    try:
        for pair in pairs:
            setup = OwnMachine(pair) if pair.broker == EMBEDDED else Setup(pair)
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
