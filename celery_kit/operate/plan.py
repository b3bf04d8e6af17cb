"""`make plan`: what tasks at a rate need, by the model in celery_kit/operate/capacity.py and the figures of `make bench`."""

import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

import click

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.operate.capacity import Ask, Figures, Plan, made
from celery_kit.operate.stacks.docker import Facts
from celery_kit.pools.table import POOLS

#: The pool of tasks that compute for at least this share of their time, and of others.
SHARE, COMPUTING, WAITING = 0.5, "prefork", "gevent"
#: Seconds until a worker that was killed counts as dead, and its tasks are restored (docs/delivery.md).
DEAD = 15.0
#: The sections of a benchmark that a plan stands on, its contender, and the sizes of tasks that were measured.
SECTIONS, OURS, SMALL, LARGE = ("deployed", "idle", "steady", "backlog"), "celery-kit fast", 100, 10_000
MEASURE = f"'make bench ONLY={','.join(SECTIONS)}' measures them"
#: Slots on all machines, at most.
MOST_SLOTS = 100_000
FIGURES = "docs/bench.json"


def figures(found: Facts, broker: str, pool: str) -> Figures:
    """What a run of `make bench` has measured of a broker and a pool. Raises LookupError if it has not."""

    def of(section: str, figure: str, pool: str = pool, size: int = SMALL) -> dict[float, float]:
        """By the rate that was asked for, the medians of a figure."""
        wanted = {"broker": broker, "pool": pool, "size": size}
        return {
            one["case"].get("rate", 0): statistics.median(each[figure] for each in one["rounds"])
            for one in found["trials"]
            if (one["section"], one["name"]) == (section, OURS) and wanted.items() <= one["case"].items() and one["rounds"]
            if figure in one["rounds"][0]
        }

    def only(values: Mapping[float, float]) -> float:
        return next(iter(values.values())) if values else _missing()

    def of_a_byte(figure: str) -> float:
        (rate, large), *_ = of("steady", figure, "solo", LARGE).items() or _missing()
        return max(0.0, large - of("steady", figure, "solo")[rate]) / (LARGE - SMALL) / 1e6

    def arriving(figure: str) -> dict[float, float]:
        """By the rate that was reached, which is lower on a busy machine than the one that was asked for."""
        reached = of("steady", "rate")
        return {reached[rate]: value for rate, value in of("steady", figure).items()}

    def of_server(name: str) -> dict[float, float]:
        """At the rates of tasks that arrive, and at that of one worker that works off a backlog."""
        fastest = of("backlog", name, "solo")
        return arriving(name) | ({only(of("backlog", "rate", "solo")): only(fastest)} if fastest else {})

    def by_size(figure: str) -> dict[float, float]:
        return {size: only(of("backlog", figure, "solo", size)) for size in (SMALL, LARGE)}

    worker, results = arriving("cpu") or _missing(), of_server("results")
    saturated = {only(of("deployed", "rate")): only(of("deployed", "cpu"))}
    memory, alone = (max((of("steady", "memory", one) or _missing()).values()) for one in (pool, "solo"))
    return Figures(
        worker=_seconds(worker | saturated),
        broker=_seconds(of_server("broker")),
        results=_seconds(results) if results else None,
        byte=(of_a_byte("cpu"), of_a_byte("broker")),
        memory=memory,
        child=(memory - alone) / 2 if POOLS[pool].has_children else 0.0,
        message=by_size("message"),
        disk=by_size("disk"),
        result=by_size("result")[SMALL],
        empty=by_size("empty")[SMALL],
        pickup=only(of("idle", "p50")) / 1e3,
        most=max(
            each["rate"]
            for one in found["trials"]
            for each in one["rounds"]
            if (one["case"]["broker"], one["name"], one["section"]) in ((broker, OURS, "deployed"), (broker, OURS, "workers"))
        ),
    )


def _seconds(values: Mapping[float, float]) -> dict[float, float]:
    return {rate: value / 1e6 for rate, value in values.items()}


def _missing() -> NoReturn:
    raise LookupError


def snippet(plan: Plan, queues: Sequence[str]) -> str:
    """The plan as a table of groups for workers.toml. At most it has the workers that make up for the loss of a machine."""
    return f"""[groups.planned]
queues = {json.dumps([*queues])}
pool = "{plan.ask.pool}"
concurrency = {plan.concurrency}
scale = {{min = {plan.workers}, max = {plan.workers + plan.share}}}
target_wait = {max(0.1, plan.ask.wait):g}
memory = "{plan.memory // 2**20}m"
"""


def lines(plan: Plan, runs: Iterable[str]) -> list[str]:
    """The plan for a person."""
    ask, slots = plan.ask, plan.workers * plan.concurrency
    left, lost = plan.after_a_loss()
    loss = f"its tasks run again {_time(DEAD)} later"
    if lost:
        loss = f"after {_time(ask.outage)} {lost:,.0f} tasks wait, gone {_time(plan.gone(lost))} after its return"
    memory = plan.workers * plan.memory + plan.broker_memory + plan.results_memory
    busy = ", ".join(f"{name} {value:.2f}" for name, value in plan.cpu.items())
    rows = {
        "workers": f"{plan.workers} of {plan.concurrency} slots: {slots} tasks at once, {plan.capacity:,.0f} tasks/s at most",
        "wait": f"95 % of the tasks start within {_time(plan.p95)}",
        "busy cores": f"{busy}, on average",
        "memory": f"{_bytes(plan.memory)} for a worker (the limit of its container)",
        "broker": f"{_bytes(plan.broker_memory)} of memory, {_time(ask.outage)} without workers: {plan.backlog:,.0f} tasks",
        "results": f"{_bytes(plan.results_memory)} of memory, if each is kept for {_time(ask.kept)}",
        "disk": f"{_bytes(plan.disk)} for both",
        "one machine": f"{plan.cores} cores and {_bytes(memory)} for all of it",
        "a cluster": f"{plan.machines} x {ask.cores} cores for workers, beside the servers",
        "that backlog": f"gone {_time(plan.gone(plan.backlog))} after the workers are back",
        "a machine lost": f"the others do {left:,.0f} tasks/s; {loss}",
        "N+1": f"{plan.share} workers more on {plan.machines + 1} machines: the loss of one costs no throughput",
    }
    head = (
        f"{ask.rate:g} tasks/s of {ask.payload:,} bytes, {ask.seconds:g} s, {ask.cpu:g} s computing; {ask.broker}, {ask.pool}"
    )
    width = max(map(len, rows)) + 2
    return [head, "", *(f"  {name:<{width}}{text}" for name, text in rows.items()), "", *(f"Measured by {run}" for run in runs)]


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.0f} h"


def _bytes(number: float) -> str:
    return f"{number / 2**20:,.0f} MiB" if number < 2**30 else f"{number / 2**30:,.1f} GiB"


def runs(found: Facts) -> list[str]:
    """The runs that the figures are of: command, date, machine, versions."""
    return list(dict.fromkeys(_run(found.get("runs", {}).get(section, found["about"])) for section in SECTIONS))


def _run(about: Facts) -> str:
    machine = f"{about['cores']} cores, Python {about['python']}, Celery {about['packages']['celery']}"
    return f"`{about['command']}`, {about['when'][:10]}: {', '.join([machine, *about['servers']])}"


def _option(
    name: str, kind: type | click.Choice[str] | click.FloatRange | click.IntRange, default: object, what: str
) -> click.Option:
    flag = f"--{name.lower().replace('_', '-')}"
    return click.Option([flag], type=kind, default=default, envvar=name, help=what, show_default=True)


NUMBER = click.FloatRange(0, 1e6, min_open=True)
OPTIONS = [
    _option("RATE", NUMBER, None, "tasks that arrive in a second"),
    _option("SECONDS_PER_TASK", NUMBER, None, "how long one takes, without its wait"),
    _option("CPU_PER_TASK", click.FloatRange(0), None, "seconds of it that a task computes; default: all"),
    _option("PAYLOAD", click.IntRange(0, 100_000_000), SMALL, "bytes of a task's arguments"),
    _option("WAIT_P95", NUMBER, 1.0, "seconds within which 95 % of the tasks start"),
    _option("VARIATION", click.FloatRange(0, 100), 1.0, "standard deviation of a task's time, as a share of its mean"),
    _option("OUTAGE", click.FloatRange(0, 100_000), 10.0, "minutes without workers that the broker has to outlast"),
    _option("CORES", click.IntRange(1, 4_096), None, "of a machine; default: this one's"),
    _option("RESULT_EXPIRES", click.IntRange(1), 86_400, "seconds that a result is kept"),
    _option("BROKER", str, None, "one that was measured; default: the first"),
    _option("POOL", click.Choice(list(POOLS)), None, f"default: {COMPUTING} for tasks that compute, {WAITING} for others"),
    _option("QUEUES", str, "celery", "of the group, between commas"),
    _option("FIGURES", str, FIGURES, "what 'make bench' has written"),
]


@click.command("plan", params=[*OPTIONS])
@click.pass_context
def plan(context: click.Context, /, **_: object) -> None:
    """Say what tasks at a rate need: workers, cores, memory, disk, and a table for workers.toml."""
    given: Facts = context.params
    rate, seconds = given["rate"], given["seconds_per_task"]
    if rate is None or seconds is None:
        refuse("RATE and SECONDS_PER_TASK are needed; for example: make plan RATE=100 SECONDS_PER_TASK=0.2 PAYLOAD=1000")
    computing = seconds if given["cpu_per_task"] is None else given["cpu_per_task"]
    if computing > seconds:
        refuse(f"CPU_PER_TASK={computing:g} is more than SECONDS_PER_TASK={seconds:g}, of which it is a part")
    if rate * seconds > MOST_SLOTS:
        refuse(f"RATE={rate:g} and SECONDS_PER_TASK={seconds:g} take {rate * seconds:,.0f} slots; {MOST_SLOTS:,} at most")
    pool = given["pool"] or (COMPUTING if computing >= SHARE * seconds else WAITING)
    found = measured(given["figures"])
    broker = choose("BROKER", given["broker"] or found["measured"][0], found["measured"])
    ask = Ask(
        broker, pool, rate, seconds, computing, given["payload"], given["wait_p95"], given["variation"],
        given["outage"] * 60, given["result_expires"],
        given["cores"] or os.cpu_count() or 1,
    )  # fmt: skip
    try:
        planned, said = made(ask, figures(found, broker, pool)), runs(found)
    except (LookupError, TypeError):
        refuse(f"FIGURES={given['figures']} has no whole figures of BROKER={broker} POOL={pool}; {MEASURE}")
    except ValueError as error:
        refuse(str(error))
    click.echo("\n".join(lines(planned, said)))
    click.echo(
        f"\napp/workers.toml, for 'make up BROKER={broker}':\n\n{snippet(planned, given['queues'].split(','))}", nl=False
    )


def measured(file: str) -> Facts:
    """The run of `make bench` in a file; its brokers are `measured`. Refuses what cannot be read, or has no figures."""
    try:
        found: Facts = json.loads((ROOT / file).read_text())
        names = list(dict.fromkeys(one["case"]["broker"] for one in found["trials"] if one["section"] == "steady"))
    except OSError as error:
        refuse(f"FIGURES={file} cannot be read: {error.strerror}")
    except (ValueError, LookupError, TypeError, RecursionError):
        refuse(f"FIGURES={file} is no run of 'make bench'")
    return {**found, "measured": names} if names else refuse(f"FIGURES={file} has no tasks that arrive at a rate; {MEASURE}")


COMMANDS = (plan,)
