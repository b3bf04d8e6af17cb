"""`make plan`: the model against a simulation and known values, and what the command says of wrong input."""

import heapq
import itertools
import json
import math
import os
import random
import statistics
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from celery_kit.base.target import ROOT
from celery_kit.operate.capacity import CORES, PROCESS, SLOTS, Ask, Figures, at, line, made, p95, waiting
from celery_kit.operate.groups import FILE, read
from celery_kit.operate.plan import FIGURES, figures, snippet
from celery_kit.pools.table import POOLS

KNOWN = Figures(
    worker={20: 2e-3, 200: 1e-3, 4_000: 2e-4}, broker={20: 1e-3, 4_000: 1e-4}, results=None, byte=(1e-8, 1e-8), memory=150e6,
    child=50e6, message={100: 600, 10_000: 10_500}, disk={100: 700, 10_000: 10_600}, result=400, empty=10e6, pickup=0.003,
    most=10_000,
)  # fmt: skip
ASK = Ask("any", "gevent", rate=300, seconds=0.05, cpu=0.0, payload=100, wait=0.5)


@pytest.mark.parametrize(("slots", "busy", "share"), [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (10, 8.0, 0.409), (100, 80.0, 0.0196)])
def test_erlangs_formula(slots: int, busy: float, share: float) -> None:
    """Values of published tables."""
    assert waiting(slots, busy) == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize(("slots", "busy", "variation"), [(1, 0.6, 1), (2, 1.5, 1), (10, 8.5, 1), (4, 3.4, 0)])
def test_the_wait_is_that_of_a_simulation(slots: int, busy: float, variation: float) -> None:
    """Tasks that arrive at random, in the order in which they came; the seed is fixed."""
    random.seed(7)
    now, free, waits = 0.0, [0.0] * slots, []
    for _ in range(200_000):
        now += random.expovariate(busy)
        begins = max(now, heapq.heappop(free))
        waits.append(begins - now)
        heapq.heappush(free, begins + (random.expovariate(1) if variation else 1.0))
    seen = statistics.quantiles(waits, n=20)[-1]
    assert p95(slots, busy, 1.0, variation) == pytest.approx(seen, rel=0.15)


def test_nothing_carries_more_than_all_slots_do() -> None:
    assert p95(2, 2.0, 1.0) == math.inf
    assert p95(50, 1.0, 1.0) == 0.0


def test_between_measured_points() -> None:
    assert at(KNOWN.worker, 5) == 2e-3 and at(KNOWN.worker, 9_999) == 2e-4, "outside, the nearest"
    assert at({10: 4.0, 1_000: 1.0}, 100) == pytest.approx(2.0)
    assert line({100: 600, 10_000: 10_500}, 1_100) == pytest.approx(1_600)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("cpu", [0.0, 0.02, 0.05])
def test_a_plan_carries_the_rate_with_room(pool: str, cpu: float) -> None:
    ask = replace(ASK, pool=pool, cpu=cpu, cores=4)
    plan = made(ask, KNOWN)
    slots = plan.workers * plan.concurrency
    assert plan.capacity > ask.rate and plan.p95 <= ask.wait
    assert ask.rate * ask.seconds <= SLOTS * slots
    row = POOLS[pool]
    assert plan.concurrency == 1 or "tasks_overlap" not in row.limits
    if not row.has_children and "tasks_overlap" not in row.limits:
        assert plan.cpu["workers"] / plan.workers <= PROCESS, "all of a worker's tasks share one core"
    assert plan.machines * ask.cores >= plan.cpu["workers"] / CORES or plan.machines == plan.workers
    left, lost = plan.after_a_loss()
    assert left < plan.capacity and (lost > 0) == (left < ask.rate)
    more = plan.capacity * (plan.workers + plan.share) / plan.workers
    assert more * plan.workers / (plan.workers + plan.share) >= plan.capacity * 0.999, "N+1 without one machine is the plan"


def test_more_of_anything_needs_more() -> None:
    plan = made(ASK, KNOWN)
    assert made(replace(ASK, rate=600), KNOWN).capacity > plan.capacity
    assert made(replace(ASK, wait=0.01), KNOWN).p95 < made(replace(ASK, wait=2, variation=4), KNOWN).p95
    assert made(replace(ASK, outage=6_000), KNOWN).broker_memory > 5 * plan.broker_memory
    assert made(replace(ASK, payload=10_000), KNOWN).broker_memory > 10 * plan.broker_memory
    assert made(replace(ASK, kept=8_640), KNOWN).results_memory == pytest.approx(plan.results_memory / 10)
    assert plan.gone(plan.backlog) == pytest.approx(plan.backlog / (plan.capacity - ASK.rate))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"wait": 0.001}, "WAIT_P95=0.001 is too short: with all slots free"),
        ({"rate": 20_000}, "RATE=20000 is beyond what was measured through one broker: 10,000 tasks/s"),
    ],
)
def test_what_nothing_can_carry(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(replace(ASK, **changed), KNOWN)


FOUND = json.loads((ROOT / FIGURES).read_text())
MEASURED = list(dict.fromkeys(one["case"]["broker"] for one in FOUND["trials"] if one["section"] == "steady"))


@pytest.mark.parametrize(("broker", "pool"), [*itertools.product(MEASURED, POOLS)])
def test_make_up_takes_what_is_planned(tmp_path: Path, broker: str, pool: str) -> None:
    """From the figures that are kept in docs/."""
    plan = made(replace(ASK, broker=broker, pool=pool, payload=5_000), figures(FOUND, broker, pool))
    (tmp_path / FILE).write_text(snippet(plan, ["mail", "celery"]))
    (group,) = read(tmp_path, "solo", 1).groups
    assert (group.pool, group.queues, group.scale[0]) == (pool, ("mail", "celery"), plan.workers)
    assert group.concurrency == plan.concurrency and group.scale[1] == plan.workers + plan.share


def typed(*words: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    return subprocess.run(["make", "plan", *words], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)


def test_what_a_user_types() -> None:
    done = typed("RATE=120", "SECONDS_PER_TASK=0.05", "CPU_PER_TASK=0", f"BROKER={MEASURED[0]}")
    assert done.returncode == 0, done.stderr
    assert "95 % of the tasks start within" in done.stdout and "[groups.planned]" in done.stdout
    assert "Measured by `make bench " in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RATE=5"], "RATE and SECONDS_PER_TASK are needed; for example: make plan RATE="),
        (["RATE=0", "SECONDS_PER_TASK=1"], "0.0 is not in the range 0<x"),
        (["RATE=1", "SECONDS_PER_TASK=1", "CPU_PER_TASK=2"], "CPU_PER_TASK=2 is more than SECONDS_PER_TASK=1"),
        (["RATE=1000000", "SECONDS_PER_TASK=1000"], "slots; 100,000 at most"),
        (["RATE=1", "SECONDS_PER_TASK=1", "BROKER=kafka"], "BROKER=kafka is not known; allowed: "),
        (["RATE=1", "SECONDS_PER_TASK=1", "POOL=fork"], "'fork' is not one of"),
        (["RATE=1", "SECONDS_PER_TASK=1", "FIGURES=none.json"], "FIGURES=none.json cannot be read: No such file"),
        (["RATE=1", "SECONDS_PER_TASK=1", "FIGURES=README.md"], "FIGURES=README.md is no run of 'make bench'"),
    ],
)
def test_wrong_input_is_one_line(words: list[str], said: str) -> None:
    done = typed(*words)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make: ***")]
    assert done.returncode == 2 and len(lines) == 1 and said in lines[0], lines
