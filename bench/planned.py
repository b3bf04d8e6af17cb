"""`make test-plan`: what `make plan` says of three loads, beside what the planned workers then do. Writes docs/reports/plan.md.

Tasks arrive at random moments and take random times, on workers in containers as `make up` starts them. ROUNDS=3 SECONDS=30.
The figures that the plan stands on are those of FIGURES, docs/bench.json.
"""

import os
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.arrivals import Load
from bench.contenders import CORES, DEPLOYED, Contender
from bench.report import table
from bench.rounds import Case
from bench.steady import steady
from celery_kit.base.refusals import whole_number
from celery_kit.operate.capacity import Ask, Plan, made
from celery_kit.operate.plan import FIGURES, figures, measured, runs
from testbed.environments import WORKERS
from testbed.places import Servers

REPORT = Path("docs/reports/plan.md")
#: Tasks that compute, tasks that wait for an answer over the network, and larger messages.
LOADS = (
    Ask("redis", "prefork", rate=8, seconds=0.05, cpu=0.05, payload=100, wait=0.2, cores=CORES),
    Ask("rabbitmq", "gevent", rate=120, seconds=0.05, cpu=0.0, payload=100, wait=0.2, cores=CORES),
    Ask("redis", "threads", rate=100, seconds=0.02, cpu=0.0, payload=10_000, wait=0.2, cores=CORES),
)
#: How far a measured rate and the CPU may be from the plan, as a share of it.
NEAR = 0.2


@dataclass
class Trial:
    """A plan, and what its rounds have measured."""

    plan: Plan
    rounds: list[dict[str, Any]] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def median(self, figure: str) -> float:
        return float(statistics.median(one[figure] for one in self.rounds))


def workers_of(plan: Plan) -> Contender:
    """The kit's workers in containers, with the planned number of slots."""
    kit = DEPLOYED[1]
    return replace(kit, worker=lambda pool, number: [*kit.worker(pool, number), "--concurrency", str(plan.concurrency)])


def measure(trials: list[Trial], rounds: int, seconds: float) -> None:
    """Run the rounds of all trials. Those of one broker take turns."""
    for broker in dict.fromkeys(one.plan.ask.broker for one in trials):
        with Servers(broker) as servers:
            for _ in range(rounds):
                for one in (trial for trial in trials if trial.plan.ask.broker == broker):
                    ask = one.plan.ask
                    case = Case(broker, ask.pool, size=ask.payload, workers=one.plan.workers)
                    load = Load(ask.rate, seconds, ask.seconds, ask.cpu, ask.payload)
                    one.load.append(os.getloadavg()[0])
                    one.rounds.append(steady(servers, workers_of(one.plan), case, load))


def rows(trial: Trial) -> Iterator[tuple[str, str, str, bool]]:
    """What is planned, what was measured, and whether that holds."""
    plan, ask = trial.plan, trial.plan.ask
    rate = trial.median("rate")
    yield "tasks/s", f"{ask.rate:g}", f"{rate:.1f}", abs(rate / ask.rate - 1) <= NEAR
    for name, figure in (("workers", "cpu"), ("broker", "broker"), ("results", "results")):
        if name in plan.cpu:
            busy = trial.median(figure) / 1e6 * ask.rate
            yield f"cores busy: {name}", f"{plan.cpu[name]:.3f}", f"{busy:.3f}", abs(busy / plan.cpu[name] - 1) <= NEAR
    wait = trial.median("p95") / 1e3
    yield "p95 of the wait, s", f"{ask.wait:g} at most ({plan.p95:.3f} expected)", f"{wait:.3f}", wait <= ask.wait
    room = trial.median("memory") / plan.workers
    yield "memory of a worker, MB", f"{plan.memory / 1e6:.0f} at most", f"{room / 1e6:.0f}", room <= plan.memory


def report(trials: list[Trial], found: dict[str, Any], command: str) -> str:
    """The report as Markdown."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "redis"))
    parts = [
        "# What make plan says, and what then happens",
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d}: medians of {len(trials[0].rounds)} rounds; {CORES} cores, {versions}. "
        f"The model is [that of `make plan`](../capacity.md). Rate and CPU hold if they are within {NEAR:.0%} of the plan, "
        "wait and memory if they stay below what is said. On a busy machine tasks wait longer, and cost more: its load is the "
        "number of processes that ran or waited for a core as a round began.",
    ]
    for one in trials:
        ask, plan = one.plan.ask, one.plan
        loads = ", ".join(f"{load:.1f}" for load in one.load)
        parts += [
            f"## {ask.broker}, {ask.pool}: {ask.rate:g} tasks/s of {ask.seconds:g} s, {ask.payload:,} bytes",
            f"`make plan RATE={ask.rate:g} SECONDS_PER_TASK={ask.seconds:g} CPU_PER_TASK={ask.cpu:g} PAYLOAD={ask.payload} "
            f"WAIT_P95={ask.wait:g} BROKER={ask.broker} POOL={ask.pool}` plans {plan.workers} x {plan.concurrency} slots. "
            f"The machine's load as the rounds began: {loads}.",
            table(["", "planned", "measured", "holds"], [[*row[:3], "yes" if row[3] else "**no**"] for row in rows(one)]),
        ]
    parts.append("The plan stands on:\n\n" + "\n".join(f"- {run}" for run in runs(found)))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    rounds = whole_number("ROUNDS", os.environ.get("ROUNDS") or "3", 1, 100)
    seconds = whole_number("SECONDS", os.environ.get("SECONDS") or "30", 1, 3_600, "seconds")
    found = measured(os.environ.get("FIGURES") or FIGURES)
    WORKERS.prepare()
    trials = [Trial(made(ask, figures(found, ask.broker, ask.pool))) for ask in LOADS]
    measure(trials, rounds, seconds)
    knobs = "".join(f" {name}={value}" for name in ("ROUNDS", "SECONDS", "FIGURES") if (value := os.environ.get(name)))
    text = report(trials, found, f"make test-plan{knobs}")
    REPORT.write_text(text)
    print(text)
    sys.exit(0 if all(row[3] for one in trials for row in rows(one)) else 1)


if __name__ == "__main__":
    main()
