"""The benchmark as tables: `reports/bench.md`; and `reports/bench.svg`, if the peers' environment exists, which draws it."""

import statistics
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from celery_kit.engine.parts import PARTS
from testbed.environments import PEERS, ROOT

#: Variables that a user may set, in the order in which the report shows them.
KNOBS = ("QUICK", "ONLY", "BROKER", "POOL", "ROUNDS", "SECONDS", "TASKS", "PART")
#: Figures of the soak test besides memory.
HELD = {
    "files": "open files",
    "connections": "connections to the broker",
    "results_connections": "to Redis",
    "queues": "queues",
    "messages": "messages in them",
    "keys": "keys in Redis beside the results",
}
#: The loops of bench/limits.py.
LOOPS = {"lean": "with messages of its own", "celerys": "with Celery's messages and results"}
#: Figures of an idle stack: label, factor, and number of digits.
AT_REST = {
    "p50": ("send to result, p50 ms", 1, 1),
    "p99": ("send to result, p99 ms", 1, 1),
    "cpu": ("idle CPU %", 1, 2),
    "memory": ("MB", 1e-6, 0),
    "first": ("start to first result, s", 1, 2),
}
#: The parts of the section `work` of a run.
WORK = ("work", "size", "depth", "workers")
PLAIN, SETTINGS, FAST = "plain Celery", "celery-kit plain", "celery-kit fast"
#: What the section `deployed` has beside these.
WARNING, MONITORED, HOST = "LOGLEVEL=WARNING", "MONITOR=1", "on the host"
Trial = dict[str, Any]


def median(trial: Trial, figure: str = "rate") -> float:
    return float(statistics.median(one[figure] for one in trial["rounds"]))


def of(found: dict[str, Any], section: str) -> list[Trial]:
    return [one for one in found["trials"] if one["section"] == section and one["rounds"]]


def ratios(ours: Trial, theirs: Trial, figure: str = "rate") -> list[float]:
    """The ratio of each round, smallest first. The two trials of a round ran one after the other."""
    pairs = zip(ours["rounds"], theirs["rounds"], strict=False)
    return sorted(mine[figure] / other[figure] for mine, other in pairs if other[figure])


def times(ours: Trial | None, theirs: Trial | None, figure: str = "rate") -> str:
    """The median ratio, and its spread: `4.1 (3.9-4.4)`. Empty if one of the two was not measured."""
    return spread(ratios(ours, theirs, figure) if ours and theirs else [])


def spread(found: list[float]) -> str:
    """The median and the spread of ratios, which are sorted, smallest first. Empty if there are none."""
    if not found:
        return ""
    ends = f" ({_short(found[0])}-{_short(found[-1])})" if len(found) > 1 else ""
    return f"{_short(statistics.median(found))}{ends}"


def _short(ratio: float) -> str:
    """Two significant digits, and all digits before the point."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.2g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) if rows else ""


def by_case(trials: list[Trial]) -> Iterator[dict[str, Trial]]:
    """The trials of one case, by name."""
    found: dict[str, dict[str, Trial]] = {}
    for one in trials:
        found.setdefault(str(one["case"]), {})[one["name"]] = one
    yield from found.values()


def number(trial: Trial | None, figure: str = "rate") -> str:
    return f"{median(trial, figure):,.0f}" if trial else ""


def pools(found: dict[str, Any]) -> str:
    rows = []
    for one in by_case(of(found, "pools")):
        plain, settings, fast = (one.get(name) for name in (PLAIN, SETTINGS, FAST))
        if not plain or not fast:
            continue
        case = fast["case"]
        rows.append(
            [case["broker"], case["pool"], number(plain), number(settings), times(settings, plain),
             number(fast), f"**{times(fast, plain)}**", times(fast, settings),
             f"{_short(median(plain, 'trips'))} / {_short(median(fast, 'trips'))}",
             f"{number(plain, 'cpu')} / {number(fast, 'cpu')}"]
        )  # fmt: skip
    head = ["broker", "pool", "plain Celery, tasks/s", "ENGINE=plain", "x plain Celery", "ENGINE=fast", "x plain Celery",
            "x ENGINE=plain", "Redis reads a task", "CPU us a task"]  # fmt: skip
    return table(head, rows)


def deployed(found: dict[str, Any]) -> str:
    rows = []
    for one in by_case(of(found, "deployed")):
        fast, plain = one.get(FAST), one.get(PLAIN)
        if not fast:
            continue
        case = fast["case"]
        rows.append(
            [case["broker"], case["pool"], number(plain), number(fast), f"**{times(fast, plain)}**",
             times(fast, one.get(WARNING)), *(times(one.get(name), fast) for name in (MONITORED, HOST)),
             f"{number(plain, 'cpu')} / {number(fast, 'cpu')}"]
        )  # fmt: skip
    head = ["broker", "pool", "plain Celery, tasks/s", "celery-kit", "x plain Celery", f"x itself at {WARNING}",
            f"with {MONITORED}: x without", f"{HOST}: x in its container", "CPU us a task"]  # fmt: skip
    return table(head, rows)


def peers(found: dict[str, Any]) -> str:
    rows = []
    for broker in dict.fromkeys(one["case"]["broker"] for one in of(found, "peers")):
        all_of_it = [one for one in of(found, "peers") if one["case"]["broker"] == broker]
        ours = next((one for one in all_of_it if one["name"] == FAST), None)
        for one in sorted(all_of_it, key=median, reverse=True):
            name = f"{one['name']}, {one['case']['workers']} x solo" if one["case"]["pool"] == "solo" else one["name"]
            megabytes = median(one, "memory") / 1e6
            rows.append([broker, name, number(one), times(ours, one) if one is not ours else "", number(one, "cpu"),
                         f"{megabytes:.0f}", f"{median(one) / megabytes:.0f}" if megabytes else ""])  # fmt: skip
    return table(
        ["broker", "all cores", "tasks/s", "celery-kit is x times it", "CPU us a task", "MB", "tasks/s for each MB"], rows
    )


def limits(found: dict[str, Any]) -> str:
    rows = []
    for one in by_case(of(found, "limits")):
        for name in LOOPS.values():
            if FAST in one and name in one:
                share = statistics.median(ratios(one[FAST], one[name]))
                rows.append([one[FAST]["case"]["broker"], name, number(one[name]), number(one[FAST]), f"{share:.0%}"])
    return table(["broker", "loop in batches", "its tasks/s", "one solo worker, ENGINE=fast", "share"], rows)


def publish(found: dict[str, Any]) -> str:
    rows = []
    for one in by_case(of(found, "publish")):
        plain = one.get("plain delay")
        for name, trial in one.items():
            rows.append([trial["case"]["broker"], name, number(trial), times(trial, plain), number(trial, "cpu")])
    return table(["broker", "producer", "tasks/s", "x plain delay", "CPU us a task"], rows)


def _what(case: dict[str, Any], section: str) -> str:
    """The parameter of a case that a section varies: `size 10,000`; otherwise the kind of work."""
    return f"{section} {case[section]:,}" if type(case.get(section)) is int else str(case["work"])


def other(found: dict[str, Any]) -> str:
    """Work, size, depth and workers in one table."""
    rows = []
    for what in WORK:
        for one in by_case(of(found, what)):
            fast, plain = one.get(FAST), one.get(PLAIN)
            if fast:
                case = fast["case"]
                rows.append([case["broker"], case["pool"], _what(case, what), number(plain), number(fast), times(fast, plain)])
    return table(["broker", "pool", "what", "plain Celery, tasks/s", "ENGINE=fast", "x plain Celery"], rows)


def choices(found: dict[str, Any]) -> str:
    cases = [one for one in by_case(of(found, "choices")) if FAST in one]
    names = dict.fromkeys(name for one in cases for name in one if name != FAST)
    rows = [["as it is, tasks/s", *(number(one[FAST]) for one in cases)]] if cases else []
    rows += [[f"`{name}`", *(times(one[name], one[FAST]) if name in one else "" for one in cases)] for name in names]
    heads = (f"{one[FAST]['case']['broker']} {one[FAST]['case']['pool']}" for one in cases)
    return table(["one choice otherwise: x as it is", *heads], rows)


def parts(found: dict[str, Any]) -> str:
    trials = {(one["name"], one["case"]["broker"], one["case"]["pool"]): one for one in of(found, "parts")}
    cases = list(dict.fromkeys((broker, pool) for _, broker, pool in trials))
    rows = []
    for name in dict.fromkeys(name for name, *_ in trials):
        said = f"`{name}`: {PARTS[name].what}" if name in PARTS else f"`{name}`"
        rows.append([said, *(_without(trials.get((name, *case))) for case in cases)])
    text = table(["without this part: x the whole engine", *map(" ".join, cases)], rows)
    said = "tasks/s; CPU a task. Of `delay` and `send_many`: one producer."
    lines = found.get("runs", {}).get("parts", found["about"]).get("lines", 0)
    return f"{text}\n\n{said} The fast path has {lines:,} lines (bench/parts.py, FILES)." if rows else ""


def _without(trial: Trial | None) -> str:
    if not trial:
        return ""
    rate, cpu = (sorted(one[what] / one[f"whole_{what}"] for one in trial["rounds"]) for what in ("rate", "cpu"))
    return f"{spread(rate)}; {_short(statistics.median(cpu))}"


def _at_rest(trial: Trial, figure: str) -> str:
    _, by, digits = AT_REST[figure]
    return f"{median(trial, figure) * by:.{digits}f}"


def idle(found: dict[str, Any]) -> str:
    rows = []
    for one in by_case(of(found, "idle")):
        if FAST in one and PLAIN in one:
            fast, plain = one[FAST], one[PLAIN]
            cells = [
                f"{_at_rest(plain, figure)} / {_at_rest(fast, figure)}: {times(fast, plain, figure)}" for figure in AT_REST
            ]
            rows.append([fast["case"]["broker"], fast["case"]["pool"], *cells])
    text = table(["broker", "pool", *(said for said, *_ in AT_REST.values())], rows)
    return f"{text}\n\nPlain Celery / celery-kit: x plain Celery." if rows else ""


def steady(found: dict[str, Any]) -> str:
    rows = []
    for one in of(found, "steady"):
        case, parties = one["case"], ("cpu", "broker", "results")
        cells = [number(one, name) if name in one["rounds"][0] else "" for name in parties]
        rows.append([case["broker"], case["pool"], f"{case['size']:,}", f"{case['rate']}", number(one), *cells])
    head = [
        "broker",
        "pool",
        "bytes a task",
        "tasks/s that arrive",
        "done, tasks/s",
        "CPU us a task: worker",
        "broker",
        "results",
    ]
    return table(head, rows)


def backlog(found: dict[str, Any]) -> str:
    rows = [
        [
            one["case"]["broker"],
            f"{one['case']['size']:,}",
            *(number(one, name) for name in ("message", "disk", "result", "broker")),
        ]
        for one in of(found, "backlog")
    ]
    head = ["broker", "bytes a task", "memory a waiting task, bytes", "disk", "memory a result", "CPU us a task, at full speed"]
    return table(head, rows)


def lasting(found: dict[str, Any]) -> str:
    rows = []
    for one in of(found, "lasting"):
        run = one["rounds"][0]
        first, last = run["first"], run["last"]
        pairs = [" ".join(f"{size / 1e6:.0f}" for size in run["memory"])]
        pairs += [f"{first[what]} / {last[what]}" for what in HELD]
        rows.append([one["case"]["broker"], one["case"]["pool"], one["name"], f"{run['tasks']:,}", number(one), *pairs])
    head = ["broker", "pool", "engine", "tasks", "tasks/s", "MB after each tenth", *HELD.values()]
    said = "One round of each, its rate with the sending; what is held, beside memory: after the first tenth / the last."
    return f"{table(head, rows)}\n\n{said}" if rows else ""


def best(found: dict[str, Any]) -> str:
    """The pool with the highest throughput for each kind of work."""
    lines = []
    waits = {"nap": "tasks that wait (5 ms each)", "call": "tasks that wait (100 ms each)"}
    words = {**waits, "burn": "tasks that compute (some 1 ms each)"}
    for kind, said in words.items():
        for broker in dict.fromkeys(one["case"]["broker"] for one in of(found, "work")):
            its = (FAST, kind, broker)
            trials = [t for t in of(found, "work") if (t["name"], t["case"]["work"], t["case"]["broker"]) == its]
            ranked = sorted(trials, key=median, reverse=True)
            order = ", ".join(f"{one['case']['pool']} {number(one)}" for one in ranked)
            lines.append(f"- {said}, on {broker}, tasks/s of one worker: {order}")
    return "\n".join(lines)


def slower(found: dict[str, Any]) -> str:
    """Cases in which plain Celery is better, by the median of the ratios: more tasks/s, or less use of resources when idle."""
    rows: list[list[str]] = []
    for section in ("pools", *WORK, "idle"):
        for one in by_case(of(found, section)):
            for ours in (one[name] for name in (SETTINGS, FAST) if {name, PLAIN} <= one.keys()):
                rows += _idle_behind(ours, one[PLAIN]) if section == "idle" else _busy_behind(ours, one[PLAIN], section)
    return table(["broker", "pool", "what", "plain Celery", "celery-kit", "x plain Celery"], rows)


def _ratio(ours: Trial, plain: Trial, figure: str = "rate") -> float:
    """The ratio as it is shown, rounded: 1 means equal."""
    return float(_short(statistics.median(ratios(ours, plain, figure) or [1])))


def _busy_behind(ours: Trial, plain: Trial, section: str) -> Iterator[list[str]]:
    case = ours["case"]
    if _ratio(ours, plain) < 1:
        what = f"{ours['name']}: {_what(case, section)}, tasks/s"
        yield [case["broker"], case["pool"], what, number(plain), number(ours), times(ours, plain)]


def _idle_behind(ours: Trial, plain: Trial) -> Iterator[list[str]]:
    case = ours["case"]
    for figure, (said, *_) in AT_REST.items():
        if _ratio(ours, plain, figure) > 1:
            shown = (_at_rest(trial, figure) for trial in (plain, ours))
            yield [case["broker"], case["pool"], f"{ours['name']}: {said}", *shown, times(ours, plain, figure)]


#: The tables, and the sections from which each is made.
TABLES: dict[str, tuple[Callable[[dict[str, Any]], str], tuple[str, ...]]] = {
    "One worker as `make up` starts it": (deployed, ("deployed",)),
    "One worker of each pool, on the host": (pools, ("pools",)),
    "All cores, beside the peers": (peers, ("peers",)),
    "Beside the bare client library": (limits, ("limits",)),
    "Publishing, one producer": (publish, ("publish",)),
    "Other work": (other, WORK),
    "What a choice gains or costs": (choices, ("choices",)),
    "What a part of the fast engine is worth": (parts, ("parts",)),
    "Idle": (idle, ("idle",)),
    "Tasks that arrive at a rate": (steady, ("steady",)),
    "What waits in the broker": (backlog, ("backlog",)),
    "Where plain Celery is ahead": (slower, ("pools", *WORK, "idle")),
    "A worker that goes on": (lasting, ("lasting",)),
    "Which pool for which work": (best, WORK),
}


def made_by(found: dict[str, Any], *sections: str) -> str:
    """Lines on the origin of the figures of these sections, or of all sections; one for each run."""
    return "\n\n".join(runs_of(found, *sections))


def runs_of(found: dict[str, Any], *sections: str) -> list[str]:
    """A line for each run that measured these sections, or any section."""
    runs, measured = found.get("runs", {}), dict.fromkeys(one["section"] for one in found["trials"])
    return list(dict.fromkeys(_made_by(runs.get(one, found["about"])) for one in measured if not sections or one in sections))


def _made_by(said: dict[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in said["packages"].items())
    return (
        f"`{said['command']}`, {said['when'][:10]}: medians of {said['rounds']} interleaved rounds of {said['seconds']} s, "
        f"acks_late, results stored and read back; {said['cores']} cores, python {said['python']}, {packages}; "
        f"{', '.join(said['servers'])}. Ratios are of rounds beside each other (smallest-largest)."
    )


def failures(found: dict[str, Any]) -> str:
    return "\n".join(
        f"- {one['section']}, {one['case']['broker']} {one['case']['pool']}, {one['name']}: {one['error'].splitlines()[0]}"
        for one in found["trials"] if one["error"]
    )  # fmt: skip


def compared(found: dict[str, Any], earlier: dict[str, Any]) -> str:
    """This run's ratios to plain Celery, compared with those of an earlier run."""

    def ratio(run: dict[str, Any]) -> dict[tuple[str, str], float]:
        cases = [one for one in by_case(of(run, "pools")) if FAST in one and PLAIN in one]
        medians = [(one[FAST]["case"], statistics.median(ratios(one[FAST], one[PLAIN]))) for one in cases]
        return {(case["broker"], case["pool"]): ratio for case, ratio in medians}

    now, then = ratio(found), ratio(earlier)
    rows = [[*key, f"{then[key]:.2g}", f"{now[key]:.2g}", f"{now[key] / then[key]:.2f}"] for key in now if key in then]
    return table(["broker", "pool", f"x plain, {earlier['about']['when'][:10]}", "x plain, now", "now / then"], rows)


def markdown(found: dict[str, Any], earlier: dict[str, Any] | None = None) -> str:
    runs = runs_of(found)
    parts = ["# Benchmark" if "runs" in found else f"# Benchmark\n\n{made_by(found)}"]
    for title, (make, sections) in TABLES.items():
        if text := make(found):
            its = ", ".join(str(runs.index(run) + 1) for run in runs_of(found, *sections))
            parts.append(f"## {title}\n\n{text}" + (f"\n\nRun {its}." if "runs" in found else ""))
    if "runs" in found:
        parts.append("## Runs\n\n" + "\n".join(f"{number}. {run}" for number, run in enumerate(runs, 1)))
    if earlier:
        parts.append(f"## Compared\n\n{compared(found, earlier)}")
    if failed := failures(found):
        parts.append(f"## What did not work\n\n{failed}")
    return "\n\n".join(parts) + "\n"


def write(found: dict[str, Any], folder: Path, earlier: dict[str, Any] | None = None) -> str:
    """Write the report to the folder of bench.json. Returns its text."""
    text = markdown(found, earlier)
    (folder / "bench.md").write_text(text)
    if of(found, "pools"):
        draw(folder / "bench.json")
    return text


def draw(run: Path) -> None:
    """Draw a run's pools to a file in its folder. Does nothing without the peers' environment, which has the packages."""
    if PEERS.is_there:
        subprocess.run([PEERS.command("python"), "-m", "bench.plot", str(run.resolve())], cwd=ROOT, check=True)
