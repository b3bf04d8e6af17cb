"""What a health probe costs, and what it says in the hard cases, in a worker's container: `make docs-probe`.

Writes docs/reports/probe.md. BROKER= and POOL= choose another worker than redis and solo.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from statistics import median
from typing import Any

from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from docs.reference import table
from testbed.servers import SERVERS
from tests.faults.setup import Pair, Setup
from tests.harness.containers import clean
from tests.harness.waiting import until
from tests.integration.report import SIGNS

#: Probes in the container, and by the engine, whose health check runs them.
RUNS, ENGINE_RUNS = 200, 20
#: What a probe may cost: milliseconds, and MB.
MOST_MS, MOST_MB = 50, 20
#: Seconds that a worker's sign of life lasts here.
HEARTBEAT_SECONDS = 5

#: Gives milliseconds, milliseconds of CPU and exit code of each probe. To start it costs what it costs the engine's runtime.
TIME = f"""
import json, os, sys, time
took = []
for _ in range({RUNS}):
    began = time.perf_counter()
    _, status, used = os.wait4(os.posix_spawn("/usr/local/bin/healthy", sys.argv, os.environ), 0)
    milliseconds = 1e3 * (time.perf_counter() - began)
    took.append([milliseconds, 1e3 * (used.ru_utime + used.ru_stime), os.waitstatus_to_exitcode(status)])
print(json.dumps(took))
"""
#: The same script in a shell that then says how much memory it took at most: what wait4 says counts the parent's own.
MEMORY = '. /usr/local/bin/healthy; while read -r name size _; do [ "$name" = VmHWM: ] && echo "$size"; done < /proc/$$/status'


@contextmanager
def idle(_: Setup) -> Iterator[None]:
    yield


@contextmanager
def busy(setup: Setup) -> Iterator[None]:
    """One call that waits, for longer than a sign of life lasts."""
    setup.send(setup.app(), "faults.wait", 50.0)
    until("it has begun", lambda: setup.ledger.begun())
    begun = time.monotonic()
    until("its last round is long ago", lambda: time.monotonic() > begun + 2 * HEARTBEAT_SECONDS)
    yield
    assert setup.ledger.under_way(), "the task ended before all was measured"


@contextmanager
def frozen(setup: Setup) -> Iterator[None]:
    setup.workers["one"].kill(signal="STOP")
    yield


@contextmanager
def without_broker(setup: Setup) -> Iterator[None]:
    setup.broker.stop(timeout=30)
    until("it has noticed", lambda: probe(setup)[0])
    yield
    setup.broker.start()
    setup.wait_for_servers()


@contextmanager
def not_consuming(setup: Setup) -> Iterator[None]:
    app = setup.app()
    until("it has heard", lambda: app.control.cancel_consumer("celery", reply=True, timeout=2))
    for _ in range(2):  # the first may still answer a question that the worker had asked before
        setup.send(app, "faults.effect", 0.0)
    until("it has noticed", lambda: probe(setup)[0])
    yield


@dataclass(frozen=True)
class Case:
    """`ready` and `live`: what the probes must say."""

    what: str
    made: Callable[[Setup], Any]
    ready: bool
    live: bool


CASES = (
    Case("has nothing to do", idle, True, True),
    Case("is frozen (SIGSTOP)", frozen, False, False),
    Case("is without its broker", without_broker, False, True),
    Case("is connected, and does not consume", not_consuming, False, False),
    Case("is busy with one long call", busy, True, True),  # the last one: its task would be given to the next worker
)


def probe(setup: Setup, *words: str) -> tuple[int, float]:
    """Ask as the engine's health check does; gives the exit code and milliseconds, the engine's own share included."""
    began = time.perf_counter()
    done = setup.workers["one"].exec_run(["healthy", *words])
    return int(done.exit_code), 1e3 * (time.perf_counter() - began)


@dataclass(frozen=True)
class Measured:
    """A probe in one case: [milliseconds, milliseconds of CPU, exit code] of each run; MB; the engine's milliseconds."""

    runs: list[list[float]]
    memory: float
    engine: list[float]

    @classmethod
    def of(cls, setup: Setup, *words: str) -> "Measured":
        inside = setup.workers["one"].exec_run
        runs = json.loads(inside(["python", "-c", TIME, *words]).output)
        memory = int(inside(["sh", "-c", MEMORY, "sh", *words]).output) / 1024
        return cls(runs, memory, [probe(setup, *words)[1] for _ in range(ENGINE_RUNS)])

    @cached_property
    def milliseconds(self) -> float:
        return median(run[0] for run in self.runs)

    def says(self) -> str:
        """Yes, no, or both."""
        return " and ".join(sorted({"no" if run[2] else "yes" for run in self.runs}))

    def cells(self) -> tuple[str, ...]:
        figures = (self.milliseconds, max(run[0] for run in self.runs), median(run[1] for run in self.runs), self.memory)
        return (self.says(), *(f"{figure:.1f}" for figure in figures), f"{median(self.engine):.0f}")


def matrix() -> str:
    """The same four cases on every combination, as the committed run of the matrix saw them."""
    found = json.loads((ROOT / "docs/matrix.json").read_text())
    rows = []
    for name, feature in found["features"].items():
        if feature["group"] == "health":
            outcomes = [cell["outcome"] for cell in found["cells"] if cell["feature"] == name]
            counts = (f"{sign} {outcomes.count(kind)}" for kind, sign in SIGNS.items() if kind in outcomes)
            rows.append((feature["title"], " ".join(counts), str(len(outcomes))))
    return table(("what the test says", "outcomes", "combinations"), *rows)


def measure(setup: Setup) -> Iterator[tuple[tuple[str, ...], str]]:
    """The table's rows, each with what is wrong with it, or nothing."""
    for case in CASES:
        setup.new_ledger()
        setup.start("one", HEARTBEAT_SECONDS=str(HEARTBEAT_SECONDS))
        setup.wait_for("one")
        until("it is healthy", lambda: probe(setup)[0] == 0)
        with case.made(setup):
            for words, due in (((), case.ready), (("live",), case.live)):
                found = Measured.of(setup, *words)
                right = found.says() == ("yes" if due else "no") and found.milliseconds <= MOST_MS and found.memory <= MOST_MB
                row = (case.what, f"`{' '.join(('healthy', *words))}`", *found.cells())
                yield row, "" if right else " ".join(row)


def main() -> None:
    broker = choose("BROKER", os.environ.get("BROKER") or "redis", SERVERS)
    pool = POOLS[choose("POOL", os.environ.get("POOL") or "solo", POOLS)]
    setup = Setup(Pair(broker, pool))
    rows, wrong = [], []
    try:
        for row, fault in measure(setup):
            print(*row, flush=True)
            rows.append(row)
            wrong += [fault] if fault else []
        shell = setup.workers["one"].exec_run(["readlink", "-f", "/bin/sh"]).output.decode().strip()
    finally:
        setup.close()
        clean()
    heads = ("a worker that", "probe", "healthy", "ms, median", "slowest", "CPU ms", "MB", "ms by the engine")
    (ROOT / "docs/reports/probe.md").write_text(
        f"""# The health probe

What [the probe](../delivery.md#health) says and costs in the container of a worker, {broker} and {pool.name}: {RUNS} runs
in the container, and {ENGINE_RUNS} as the engine's health check starts them, whose time is nearly all the engine's. CPU is the
median, memory the most that the shell held. It may cost {MOST_MS} ms and {MOST_MB} MB. A sign of life lasts
{HEARTBEAT_SECONDS} s here.

Written by `make docs-probe`, {datetime.now(UTC):%F}; {os.cpu_count()} cores, {os.getloadavg()[1]:.1f} processes ran or waited
for them; the shell is {shell}; celery {version("celery")}, Docker {setup.client.version()["Version"]}.

{table(heads, *rows)}

On every broker, result backend and pool, by `make test-matrix` ([all of it](../matrix.md)):

{matrix()}
"""
    )
    sys.exit(f"not as it must be:\n{chr(10).join(wrong)}" if wrong else 0)


if __name__ == "__main__":
    main()
