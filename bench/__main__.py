"""`make bench`: every broker, pool and engine beside plain Celery and its peers, in interleaved rounds on the same servers.

Writes reports/bench.json after every case, and the report made from it: reports/bench.md and bench.svg. A ratio counts, within
one run; a rate is this machine's.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import report
from bench.arrivals import Load
from bench.contenders import CELERYS, CORES, DEPLOYED, FAST, OTHERWISE, PEER_ROWS, PLAIN, PYTHON, SETTINGS, Contender, otherwise
from bench.idle import side_by_side
from bench.limits import LIMITS
from bench.parts import ROWS, SIDES, contender, lines, without
from bench.publish import WAYS
from bench.rounds import ROOT, Case, NothingDoneError, consume, environment
from bench.soak import soak
from bench.steady import BACKLOGS
from bench.steady import backlog as backlog_of
from bench.steady import steady as steadily
from celery_kit.base.refusals import choose, refuse, whole_number
from celery_kit.engine.parts import WORKER, Part
from celery_kit.pools.table import POOLS
from testbed.environments import NEWER_PEERS, PEERS, WORKERS
from testbed.places import Place, Servers
from testbed.servers import EVERY, SERVERS

REPORTS = Path("reports")
#: For an idle stack, in a full and a quick run: tasks, of which ten are beyond the 99th percentile, and idle seconds.
IDLE, GLANCE = (1_000, 10.0), (100, 3.0)
#: Tasks/s that arrive at a worker whose queue is empty.
RATES = (20, 200)
Measure = Callable[[Servers], dict[str, Any]]


@dataclass
class Trial:
    """One measurement, repeated in each round or done `once`, and its figures. Trials of one `group` take turns."""

    section: str
    group: str
    name: str
    case: Case
    measure: Measure
    rounds: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    once: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {
            "section": self.section, "name": self.name, "case": asdict(self.case), "rounds": self.rounds, "error": self.error,
        }  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """The user's choices for a run."""

    brokers: list[str]
    pools: list[str]
    rounds: int
    seconds: float
    quick: bool
    parts: tuple[str, ...] = tuple(ROWS)

    def consumed(self, section: str, contenders: Iterable[Contender], case: Case) -> Iterator[Trial]:
        for one in contenders:
            if not one.brokers or case.broker in one.brokers:
                yield Trial(section, f"{section} {case}", one.name, case, _consume(one, case, self.seconds))


def _consume(contender: Contender, case: Case, seconds: float) -> Measure:
    return lambda servers: asdict(consume(servers, contender, case, seconds))


def pools(plan: Plan) -> Iterator[Trial]:
    """One worker of each pool: plain Celery, the kit's settings without its engine, and with it."""
    for broker in plan.brokers:
        for pool in plan.pools:
            yield from plan.consumed("pools", (PLAIN, FAST) if plan.quick else CELERYS, Case(broker, pool))


def deployed(plan: Plan) -> Iterator[Trial]:
    """One worker of each pool as `make up` starts it, in its container, beside plain Celery in the same container."""
    for broker in plan.brokers:
        for pool in plan.pools:
            yield from plan.consumed("deployed", DEPLOYED, Case(broker, pool))


def peers(plan: Plan) -> Iterator[Trial]:
    """All cores: one solo worker of the kit for each core, compared with each peer in its fastest configuration."""
    for broker in plan.brokers:
        ours = Case(broker, "solo", workers=CORES)
        group = list(plan.consumed("peers", (FAST, PLAIN), ours)) + list(
            plan.consumed("peers", PEER_ROWS, Case(broker, "its own"))
        )
        for one in group:
            one.group = f"peers {broker}"
            yield one


def limits(plan: Plan) -> Iterator[Trial]:
    """The throughput of the bare client library, and what fraction of it one worker reaches."""
    for broker in (name for name in plan.brokers if name in LIMITS):
        case = Case(broker, "solo")
        loops = [Trial("limits", "", name, case, _limit(loop, case)) for loop, name in report.LOOPS.items()]
        trials = [*loops, *plan.consumed("limits", (FAST,), case)]
        for one in trials:
            one.group = f"limits {broker}"
            yield one


def _limit(loop: str, case: Case) -> Measure:
    def measure(servers: Servers) -> dict[str, Any]:
        with servers.place() as place:
            return {"rate": float(_python(PLAIN, place, case, "bench.limits", loop, case.broker, "20000"))}

    return measure


def _python(contender: Contender, place: Place, case: Case, *argv: str) -> str:
    """The output of `python -m …` on these servers."""
    environ = environment(contender, place, case)
    return subprocess.run([PYTHON, "-m", *argv], cwd=ROOT, env=environ, check=True, capture_output=True, text=True).stdout


def publish(plan: Plan) -> Iterator[Trial]:
    """One producer."""
    for broker in plan.brokers:
        case = Case(broker, "solo")
        for way, times in WAYS.items():
            yield Trial(
                "publish", f"publish {broker}", way, case, _publish(way, (500 if plan.quick else 2_000) * times, case, {})
            )


def _publish(way: str, number: int, case: Case, environ: dict[str, str]) -> Measure:
    engine = SETTINGS if way == "plain delay" else otherwise(way, environ)  # plain: the kit's engine is not in this process

    def measure(servers: Servers) -> dict[str, Any]:
        with servers.place() as place:
            return dict(json.loads(_python(engine, place, case, "bench.publish", way, str(number))))

    return measure


def work(plan: Plan) -> Iterator[Trial]:
    """Tasks that do some work: waiting, computing, larger messages, a deep queue, more workers."""
    for broker in plan.brokers:
        for pool in plan.pools:
            for kind in ("nap", "call", "burn", "fail"):
                yield from plan.consumed("work", (PLAIN, FAST), Case(broker, pool, work=kind))
        for size in (10_000, 1_000_000):
            case = Case(broker, "solo", size=size, depth=400 if size > 100_000 else 0)
            yield from plan.consumed("size", (PLAIN, FAST), case)
        yield from plan.consumed("depth", (FAST,), Case(broker, "solo", depth=100_000))
        for workers in range(1, 2 * CORES + 1):
            yield from plan.consumed("workers", (PLAIN, FAST), Case(broker, "solo", workers=workers))


def choices(plan: Plan) -> Iterator[Trial]:
    """The gain or cost of each of the kit's choices: a worker with the defaults, and one with a single choice changed."""
    for broker in plan.brokers:
        for pool in plan.pools:
            yield from plan.consumed("choices", (FAST, *OTHERWISE), Case(broker, pool))


def parts(plan: Plan) -> Iterator[Trial]:
    """The fast engine without one of its parts, compared with the whole engine: workers and producers. PART= selects parts."""
    for broker in plan.brokers:
        for side, way in SIDES.items():
            for pool in plan.pools if side == WORKER else [side]:
                for part in (ROWS[name] for name in plan.parts):
                    if part.works(side, broker, pool if side == WORKER else ""):
                        case = Case(broker, pool)
                        measure = (
                            _worker_without(part, case, plan) if side == WORKER else _producer_without(part, way, case, plan)
                        )
                        yield Trial("parts", f"parts {case} {part.name}", part.name, case, measure)


def _worker_without(part: Part, case: Case, plan: Plan) -> Measure:
    other = contender(part)
    return _in_turn(*(_consume(one, case, plan.seconds) for one in (FAST, other)))


def _producer_without(part: Part, way: str, case: Case, plan: Plan) -> Measure:
    number = (500 if plan.quick else 2_000) * WAYS[way]
    return _in_turn(*(_publish(way, number, Case(case.broker, "solo"), environ) for environ in ({}, without(part))))


def _in_turn(whole: Measure, other: Measure) -> Measure:
    """Measure both, one after the other. Returns the figures of `other`, and those of the whole engine as `whole_…`."""

    def measure(servers: Servers) -> dict[str, Any]:
        return {f"whole_{name}": value for name, value in whole(servers).items()} | other(servers)

    return measure


def idle(plan: Plan) -> Iterator[Trial]:
    """Idle workers: time from start to first result, latency of single tasks, CPU and memory without tasks."""
    number, seconds = GLANCE if plan.quick else IDLE
    for broker in plan.brokers:
        for pool in plan.pools:
            case, found = Case(broker, pool), dict[str, Any]()
            for one in (PLAIN, FAST):
                yield Trial("idle", f"idle {case}", one.name, case, _idle(one.name, case, found, number, seconds))


def _idle(name: str, case: Case, found: dict[str, Any], number: int, seconds: float) -> Measure:
    """The first trial of a round measures both workers at once."""

    def measure(servers: Servers) -> dict[str, Any]:
        if name not in found:
            found.update(side_by_side(servers, (PLAIN, FAST), case, number, seconds))
        return dict(found.pop(name))

    return measure


def lasting(plan: Plan) -> Iterator[Trial]:
    """TASKS (100,000) on one worker of each pool, in one round. Runs only if ONLY names it."""
    tasks = whole_number("TASKS", os.environ.get("TASKS") or "100000", 1_000, 10_000_000, "tasks")
    for broker in plan.brokers:
        for pool in plan.pools:
            case = Case(broker, pool)
            yield Trial("lasting", f"lasting {case}", FAST.name, case, _soak(FAST, case, tasks), once=True)


def _soak(contender: Contender, case: Case, tasks: int) -> Measure:
    return lambda servers: soak(servers, contender, case, tasks)


def steady(plan: Plan) -> Iterator[Trial]:
    """What a task costs at rates at which the queue is empty: a worker of each pool as `make up` starts it, and the servers."""
    for broker in plan.brokers:
        for pool in plan.pools:
            for rate in RATES:
                case = Case(broker, pool, rate=rate)
                yield Trial("steady", f"steady {case}", FAST.name, case, _steadily(case, plan.seconds))
        case = Case(broker, "solo", rate=RATES[1], size=10_000)
        yield Trial("steady", f"steady {case}", FAST.name, case, _steadily(case, plan.seconds))


def _steadily(case: Case, seconds: float) -> Measure:
    return lambda servers: steadily(servers, DEPLOYED[1], case, Load(case.rate, seconds, size=case.size))


def backlog(plan: Plan) -> Iterator[Trial]:
    """What a message that waits, and a result, take of the servers' memory and disk."""
    for broker in plan.brokers:
        for size in BACKLOGS:
            case = Case(broker, "solo", size=size)
            yield Trial("backlog", f"backlog {case}", FAST.name, case, _backlog(case))


def _backlog(case: Case) -> Measure:
    return lambda servers: backlog_of(servers, DEPLOYED[1], case)


SECTIONS: dict[str, Callable[[Plan], Iterator[Trial]]] = {
    one.__name__: one for one in (deployed, pools, peers, limits, publish, work, choices, parts, idle, steady, backlog, lasting)
}


#: Slow sections, which run only if ONLY names them.
BY_NAME = ("parts", "lasting")


def about(plan: Plan) -> dict[str, Any]:
    """The machine and the versions of a run."""
    packages = {name: version(name) for name in ("celery", "kombu", "amqp", "redis", "gevent", "eventlet")}
    listed: list[dict[str, str]] = []
    for peers in (one for one in (PEERS, NEWER_PEERS) if one.is_there):
        pip = [peers.command("python"), "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"]
        listed += json.loads(subprocess.run(pip, check=True, capture_output=True, text=True).stdout)
    names = ("dramatiq", "huey", "taskiq", "arq", "rq", "streaq", "saq", "faststream", "repid")
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make bench" + "".join(f" {name}={value}" for name in report.KNOBS if (value := os.environ.get(name))),
        "cores": CORES,
        "python": platform.python_version(),
        "packages": packages | {one["name"]: one["version"] for one in listed if one["name"] in names},
        "servers": [],
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "lines": lines(),
    }


def run(plan: Plan, trials: Sequence[Trial], out: Path) -> dict[str, Any]:
    """Run the trials of each group in turn, and write the results so far after each group."""
    found: dict[str, Any] = {"about": about(plan), "trials": []}
    groups: dict[tuple[str, str], list[Trial]] = {}
    for one in trials:
        groups.setdefault((one.case.broker, one.group), []).append(one)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=sum(1 if one.once else plan.rounds for one in trials))
        for broker in plan.brokers:
            progress.update(bar, description=f"{broker} starts")
            with Servers(broker) as servers:
                found["about"]["servers"].append(servers.version())
                for (its_broker, _), group in groups.items():
                    if its_broker != broker:
                        continue
                    for _ in range(1 if group[0].once else plan.rounds):
                        for one in group:
                            progress.update(bar, description=f"{broker} {one.section} {one.case.pool} {one.name}")
                            _once(one, servers)
                            progress.advance(bar)
                    found["trials"] += [one.as_dict() for one in group]
                    out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _once(one: Trial, servers: Servers) -> None:
    if one.error:
        return  # a trial that has failed is not repeated
    try:
        one.rounds.append(one.measure(servers))
    except NothingDoneError as error:
        one.error = str(error)
    except subprocess.CalledProcessError as error:
        said = str(error.stderr)[-500:].replace(f"{ROOT}/", "")
        one.error = f"{' '.join(error.cmd[1:4])} ended with {error.returncode}: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.parse_args()

    def chosen(name: str, allowed: Iterable[str]) -> list[str]:
        given = os.environ.get(name)
        return [choose(name, one, list(allowed)) for one in given.split(",")] if given else list(allowed)

    quick = bool(os.environ.get("QUICK"))
    plan = Plan(
        brokers=chosen("BROKER", EVERY if os.environ.get("BROKER") else SERVERS),
        pools=chosen("POOL", POOLS),
        rounds=whole_number("ROUNDS", os.environ.get("ROUNDS") or ("1" if quick else "3"), 1, 100),
        seconds=whole_number("SECONDS", os.environ.get("SECONDS") or ("2" if quick else "4"), 1, 3_600, "seconds"),
        quick=quick,
        parts=tuple(chosen("PART", ROWS)),
    )
    sections = chosen("ONLY", SECTIONS)
    if not os.environ.get("ONLY"):
        sections = ["pools"] if quick else [name for name in sections if name not in BY_NAME]
    earlier = Path(os.environ["COMPARE"]) if os.environ.get("COMPARE") else None
    if earlier and not earlier.is_file():
        refuse(f"COMPARE={earlier}: there is no such file; allowed: a bench.json of an earlier run")
    for needed in (WORKERS, *([PEERS, NEWER_PEERS] if "peers" in sections else [])):
        needed.prepare()
    REPORTS.mkdir(exist_ok=True)
    found = run(plan, [trial for name in sections for trial in SECTIONS[name](plan)], REPORTS / "bench.json")
    print(report.write(found, REPORTS, json.loads(earlier.read_text()) if earlier else None))
    sys.exit(1 if any(one["error"] for one in found["trials"]) else 0)


if __name__ == "__main__":
    main()
