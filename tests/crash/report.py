"""The outcomes of trials, a line of JSON each, and docs/reports/crash.md made from them: `python -m tests.crash.report`.

The last outcome of each trial counts. Those of docs/reports/crash.json are read before those of reports/crash.jsonl, so that
trials that are run again, also in another clone, make one report with the others. ABOUT= adds a sentence, as on the machine.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from celery_kit.base.target import ROOT
from tests.crash.setup import ALL_ENGINES, BROKERS, QUIET, VISIBILITY
from tests.crash.trials import (
    FEW,
    FEW_RUNS,
    KILLS,
    MORE_KILLS,
    NEVER,
    PARTS,
    RESTORES,
    STALL_RUNS,
    TASKS,
    WATCHED,
    WATCHED_SECONDS,
    trials,
)
from tests.harness.workers import PLAIN_CELERY

NOTES = ROOT / "reports/crash.jsonl"
HERE = ROOT / "docs/reports"
NAMES = {**{engine: f"celery-kit {engine}" for engine in ALL_ENGINES}, PLAIN_CELERY: "plain Celery"}
#: Seconds within which a green pool must have restored the messages of a dead worker.
RESTORED = VISIBILITY + 10
#: A run in which no task begins for so many seconds stalls.
STALLS = 1.0
PACKAGES = ("celery", "kombu", "amqp", "redis", "eventlet", "gevent", "flower")
Outcome = dict[str, Any]


def note(outcome: Outcome) -> None:
    """Append an outcome to the file. Several processes may do so at once."""
    NOTES.parent.mkdir(exist_ok=True)
    line = json.dumps({**outcome, "date": f"{datetime.now(UTC):%F %T}"}) + "\n"
    file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def outcomes() -> dict[tuple[str, ...], Outcome]:
    """Outcomes by part, broker, pool and engine, in the order of the tables."""
    kept = HERE / "crash.json"
    lines = [json.loads(line) for line in NOTES.read_text().splitlines()] if NOTES.exists() else []
    found = {key(one): one for one in [*(json.loads(kept.read_text()) if kept.exists() else []), *lines]}
    return {name: found[name] for name in wanted() if name in found}


def key(one: Outcome) -> tuple[str, ...]:
    return one["part"], one["broker"], one["pool"], one["engine"]


def wanted() -> Iterator[tuple[str, ...]]:
    for part, row in PARTS.items():
        for broker in BROKERS:
            for pool, engine in trials(part, broker, row.pools, row.engines):
                yield part, broker, pool, engine


def lost(one: Outcome) -> int:
    """Tasks of a trial with kills that have no result after everything has settled."""
    return int(one["tasks"] - one["results"])


def of_kills(one: Outcome) -> list[object]:
    return [
        *(one["kills"], f"{one['results']:,}", f"**{lost(one):,}**" if lost(one) else 0, one["left"]),
        *(f"{one['executions']:,}", f"{one['twice']:,}", one["most"]),
    ]


def of_restores(one: Outcome) -> list[object]:
    words = [f"{seconds:.1f}" if seconds is not None else f"**not within {NEVER:g}**" for seconds in one["seconds_each"]]
    return [one["held"], ", ".join(words)]


def rate(one: Outcome, begin: int, end: int) -> str:
    """Tasks/s from the `begin`th to the `end`th task, or to the last one that was run."""
    marks = one["marks"]
    last = min(end // 100, len(marks) - 1)
    if last <= begin // 100:
        return "—"
    return f"{(last * 100 - begin) / max(marks[last] - marks[begin // 100], 0.01):,.0f}"


def of_events(one: Outcome) -> list[object]:
    window, past = one["window"], 3_000
    each = [one["marks"][at + 10] - one["marks"][at] for at in range(past // 100, len(one["marks"]) - 10, 10)]
    between = f" ({1_000 / max(each):,.0f} to {1_000 / max(min(each), 0.01):,.0f})" if each else ""
    cpu = one.get("cpu", [])
    used = [(cpu[b] - cpu[a]) / (b - a) * 10 for a, b in ((0, past // 100), (past // 100, len(cpu) - 1)) if a < b < len(cpu)]
    return [
        *(f"{one['done']:,} in {one['marks'][-1]:.0f} s", rate(one, 0, window), rate(one, window, past)),
        *(f"{rate(one, past, WATCHED)}{between}", " / ".join(f"{each:.2f}" for each in used) or "—", f"{one['flower']:,}"),
    ]


def stalled(one: Outcome) -> int:
    return sum(pause > STALLS for pause in one["pauses"])


def of_stalls(one: Outcome) -> list[object]:
    rates, asleep = one["rates"], one["asleep"]
    return [
        *(one["runs"], f"**{one['missing']:,}**" if one["missing"] else 0),
        *(f"{min(rates):,}", f"{statistics.median(rates):,.0f}", f"{max(rates):,}"),
        *(f"{statistics.median(asleep):.0%}", f"{max(asleep):.0%}"),
        *(f"**{stalled(one)}**" if stalled(one) else 0, f"{max(one['pauses']) * 1000:,.0f}"),
    ]


KILLED = (
    "SIGKILLs",
    "results",
    "lost",
    "messages that nobody gets",
    "executions",
    "tasks run more than once",
    "most runs of one",
)
STALL = (
    *("runs", "tasks missing", "tasks/s, slowest", "median", "fastest", "asleep, median", "most"),
    *("runs that stall", "longest pause, ms"),
)
#: Title, description, columns, and their cells.
SECTIONS: dict[str, tuple[str, str, tuple[str, ...], Callable[[Outcome], list[object]]]] = {
    "sigkill": (
        f"{KILLS} SIGKILLs amid {TASKS:,} tasks",
        f"""{TASKS:,} tasks of 2 ms are sent. A worker takes them, and is killed with all its children at a random
moment of its part of the way; the next one starts, {KILLS} times; a last one does the rest. A task is lost when it has no
result and nothing has changed for {QUIET["redis"]:g} s ({QUIET["rabbitmq"]:g} s on RabbitMQ); the broker may have a message of
it then that nobody gets. What was killed after its work and before its acknowledgement runs again: executions are those that
began.""",
        KILLED, of_kills,
    ),
    "arriving": (
        f"{MORE_KILLS} SIGKILLs on Redis while messages arrive",
        f"""The same with {MORE_KILLS} kills, and at most {FEW} messages waiting at a time. Plain Celery loses a message
that BRPOP has taken and the record of what is out has not: one round trip.""",
        KILLED, of_kills,
    ),
    "restore": (
        "What a killed green worker held",
        f"""A worker with as many tasks as it can run is killed; another one starts. Seconds from the kill until that
one has done all of them, its start among them, {RESTORES} times. The visibility timeout is {VISIBILITY} s, the goal
{RESTORED} s.""",
        ("tasks held", "seconds"), of_restores,
    ),
    "events": (
        "Green pools on RabbitMQ with events",
        f"""A worker with `-E`, and Flower connected, on a queue with {WATCHED:,} tasks that do nothing, for
{WATCHED_SECONDS:g} s at most. Tasks a second in the first window (four messages for each of 50 tasks at once), from there to
3,000, and past them, with the slowest and the fastest thousand; the worker's
CPU ms a task, to 3,000 and past them, which other load on the machine does not move; and the task-succeeded events that Flower
has counted.""",
        ("done", "first window", "to 3,000", "past 3,000", "CPU ms a task", "seen by Flower"), of_events,
    ),
    "stall": (
        "Prefetch 4",
        f"""{STALL_RUNS} runs, {FEW_RUNS} of plain Celery, each of a new worker with `--prefetch-multiplier 4` and {TASKS:,}
tasks that do nothing. A run stalls when no task begins for {STALLS:g} s. Asleep is the part of a run in which the worker's
loop was neither on a core nor waiting for one.""",
        STALL, of_stalls,
    ),
}  # fmt: skip


def section(part: str, found: dict[tuple[str, ...], Outcome]) -> str:
    title, what, columns, cells = SECTIONS[part]
    rows = [f"| broker | pool | engine | {' | '.join(columns)} |", "|" + " --- |" * (len(columns) + 3)]
    for one in (one for name, one in found.items() if name[0] == part):
        shown = (
            [f"not made: {one['error'].partition(chr(10))[0][:80]}"] + [""] * (len(columns) - 1)
            if "error" in one
            else cells(one)
        )
        rows.append(f"| {one['broker']} | {one['pool']} | {NAMES[one['engine']]} | {' | '.join(map(str, shown))} |")
    missing = [" ".join(name[1:]) for name in wanted() if name[0] == part and name not in found]
    rows += ["", filled(f"Not run: {', '.join(missing)}.")] if missing else []
    return "\n".join(["", f"## {title}", "", filled(what), "", *rows])


def filled(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 128, break_on_hyphens=False)


def sums(found: dict[tuple[str, ...], Outcome]) -> str:
    """A row for each engine: the sums over all kills."""
    columns = ("kills", "tasks", "results", "lost", "executions")
    rows = ["| | SIGKILLs | tasks | results | lost | executions |", "|" + " --- |" * (len(columns) + 1)]
    for engine in ALL_ENGINES:
        ones = [{**one, "lost": lost(one)} for one in found.values() if one["engine"] == engine and "kills" in one]
        rows.append(f"| {NAMES[engine]} | {' | '.join(f'{sum(one[name] for one in ones):,}' for name in columns)} |")
    return "\n".join(rows)


def faults(found: dict[tuple[str, ...], Outcome]) -> list[str]:
    """Guarantees of the fast engine that a trial has violated, a line each."""
    wrong: dict[str, Callable[[Outcome], object]] = {
        "sigkill": lambda one: one["results"] < one["tasks"] or one["kills"] < KILLS,
        "arriving": lambda one: one["results"] < one["tasks"] or one["kills"] < MORE_KILLS,
        "restore": lambda one: any(seconds is None or seconds > RESTORED for seconds in one["seconds_each"]),
        "events": lambda one: one["done"] < one["tasks"],
        "stall": lambda one: one["missing"] or stalled(one),
    }
    fast = [(name, one) for name, one in found.items() if name[3] == ALL_ENGINES[0]]
    return [f"{' '.join(name)}: {one}" for name, one in fast if "error" in one or wrong[name[0]](one)]


def title(found: dict[tuple[str, ...], Outcome]) -> str:
    """The report's first line. It says how many of the kit's trials are older than the last day on which its code changed."""
    git = ["git", "log", "-1", "--format=%cd", "--date=format:%Y-%m-%d", "--", "celery_kit"]
    changed = subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    kits = [one["date"] for one in found.values() if one["engine"] != PLAIN_CELERY]
    older = sum(date < changed for date in kits)
    return "# SIGKILLs" + (f" ({older} of the kit's {len(kits)} trials are older than the code)" if older else "")


def main() -> None:
    found = outcomes()
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    servers = ", ".join(sorted({one["server"] for one in found.values()}))
    dates = sorted({one["date"].partition(" ")[0] for one in found.values()})
    HERE.mkdir(parents=True, exist_ok=True)
    kept = [{**one, "last_words": one.get("last_words", "")[-500:] if "error" in one else ""} for one in found.values()]
    (HERE / "crash.json").write_text("[\n" + ",\n".join(map(json.dumps, kept)) + "\n]\n")
    about = f"""Workers that are killed amid quick tasks; each run of a task is counted in Redis, beside Celery. Written by
`make test-crash`, {" to ".join(dict.fromkeys((dates[0], dates[-1])))}; {os.cpu_count()} cores, Python
{platform.python_version()}, {versions}; {servers}. {len(found)} of {len(list(wanted()))} trials were run; crash.json has the
date of each, for a run may be made in parts. {os.environ.get("ABOUT", "")}"""
    plain = """Plain Celery is `Celery(broker, backend)` with `acks_late`, its workers started without any flag; it has the
visibility timeout, the sweeps and the tasks at once of celery-kit."""
    parts = [section(part, found) for part in PARTS]
    (HERE / "crash.md").write_text(
        "\n".join([f"{title(found)}\n", filled(about), "", filled(plain), "", sums(found), *parts, ""])
    )
    if wrong := faults(found):
        sys.exit("celery-kit: " + "\n".join(wrong))


if __name__ == "__main__":
    main()
