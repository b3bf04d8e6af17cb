"""The outcomes of trials, on the kit and on plain Celery: a line of JSON each, and tables made from them.

`python -m tests.faults.report` writes docs/reports/faults.md and faults.json from reports/faults.jsonl. The last outcome of
each trial counts, so that a run in several parts, or a trial that was run again, gives one report. ABOUT= adds a sentence,
such as on the machine.
"""

import json
import os
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.faults import takeover
from tests.faults.table import FAULTS
from tests.faults.trial import TASKS, Outcome

NOTES = ROOT / "reports/faults.jsonl"
HERE = ROOT / "docs/reports"
ENGINES = ("kit", "plain")
#: Tasks that a trial must have in flight. If publishing was slower than the workers, the cell has the actual number.
IN_FLIGHT = 500


def note(outcome: Outcome) -> None:
    """Append an outcome to the file. Several processes may do so at once."""
    NOTES.parent.mkdir(exist_ok=True)
    line = json.dumps({**outcome.as_dict(), "date": f"{datetime.now(UTC):%F %T}"}) + "\n"
    file = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


def outcomes() -> dict[tuple[str, str, str, str], dict[str, Any]]:
    """Outcomes by fault, broker, pool and engine."""
    found = [json.loads(line) for line in NOTES.read_text().splitlines()] if NOTES.exists() else []
    return {(one["fault"], one["broker"], one["pool"], one["engine"]): one for one in found}


def twice(one: dict[str, Any]) -> tuple[int, int]:
    """The number of tasks that were done twice, without and with `@once`. Plain Celery has no `@once`."""
    repeated, with_once = one["repeated"], one.get("repeated_once", 0)
    return (repeated, with_once) if one["engine"] == "kit" else (repeated + with_once, 0)


def cell(one: "dict[str, Any] | None") -> str:
    """A short description of an outcome."""
    if one is None:
        return ""
    if one["error"]:
        return f"not made: {one['error'].split(':')[0]}"
    words = [f"**lost {one['lost']}**" if one["lost"] else "0 lost"]
    again, in_spite = twice(one)
    words += [f"{again} twice"] if again else []
    words += [f"**{in_spite} twice with @once**"] if in_spite else []
    words += [f"{one['no_result']} without result"] if one["no_result"] else []
    words += ["**stands still**" if one["flowing"] is None else f"{one['flowing']:.0f} s"]
    words += [f"ended and came back: {one['restarts']}"] if one["restarts"] > 0 else []
    words += [f"exit {code}" for code in one["exits"] if code]
    words += [f"{one['in_flight']} in flight"] if one["in_flight"] < IN_FLIGHT else []
    return ", ".join(words)


def tables(found: dict[tuple[str, str, str, str], dict[str, Any]]) -> str:
    """A table for each broker and engine, with a row for each fault and a column for each pool."""
    parts = []
    for broker in sorted({key[1] for key in found}):
        for engine in ENGINES:
            if not any(key[1] == broker and key[3] == engine for key in found):
                continue
            parts += ["", f"## {broker}, {'celery-kit' if engine == 'kit' else 'plain Celery'}", ""]
            parts += [f"| fault | {' | '.join(POOLS)} |", "|" + " --- |" * (len(POOLS) + 1)]
            for fault in FAULTS:
                cells = [
                    cell(found.get((fault.name, broker, pool, engine))) if fault.fits(broker, pool) else "—" for pool in POOLS
                ]
                parts.append(f"| `{fault.name}` | {' | '.join(cells)} |")
    return "\n".join(parts)


def sums(found: dict[tuple[str, str, str, str], dict[str, Any]]) -> str:
    """A row for each engine with sums of trials, tasks and losses. If plain Celery was run: over the trials run on both."""
    rows = [
        "| | trials | tasks accepted | lost | trials with losses | done twice | standing still | workers that ended |",
        "|" + " --- |" * 8,
    ]
    both = {key[:3] for key in found if key[3] == "plain"} & {key[:3] for key in found if key[3] == "kit"}
    for name, engine, among in (
        ("celery-kit, all", "kit", None),
        ("celery-kit, where plain Celery was run too", "kit", both),
        ("plain Celery, there", "plain", both),
    ):
        chosen = [
            one for key, one in found.items() if key[3] == engine and (among is None or key[:3] in among) and not one["error"]
        ]
        rows.append(
            f"| {name} | {len(chosen)} | {sum(one['accepted'] for one in chosen)} | {sum(one['lost'] for one in chosen)} "
            f"| {sum(bool(one['lost']) for one in chosen)} | {sum(sum(twice(one)) for one in chosen)} "
            f"| {sum(one['flowing'] is None for one in chosen)} | {sum(max(0, one['restarts']) for one in chosen)} |"
        )
    return "\n".join(rows)


def main() -> None:
    found = outcomes()
    wanted = sum(fault.fits(broker, pool) for fault in FAULTS for broker in SERVERS for pool in POOLS)
    have = {engine: sum(key[3] == engine for key in found) for engine in ENGINES}
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "amqp", "redis", "eventlet", "gevent"))
    quiet = ", ".join(f"{server.faults.quiet:g} s on {name}" for name, server in SERVERS.items())
    what = "\n".join(f"| `{fault.name}` | {fault.what} | {fault.seconds:g} | {fault.repeats or 'none'} |" for fault in FAULTS)
    about = os.environ.get("ABOUT") or "Two cores."
    HERE.mkdir(parents=True, exist_ok=True)
    (HERE / "faults.json").write_text(json.dumps([{**one, "last_words": ""} for one in found.values()], indent=1) + "\n")
    (HERE / "faults.md").write_text(
        f"""# Faults

Two workers under load, {TASKS} tasks accepted and not done as the fault begins, 20 a second more all the while; a ledger
that no part of Celery knows counts what was accepted and what was done. A task is lost when it was accepted and nothing
at all has been done for {quiet}. celery-kit has its default settings;
plain Celery's visibility timeout is 20 s. The
seconds are those from the fault's end until every worker that runs has begun a task. Written by `make test-faults`,
{datetime.now(UTC):%F}; Python 3.13, {versions}. Run: {have["kit"]} of {wanted} trials on celery-kit, {have["plain"]} on plain
Celery; an empty cell was not run. faults.json has the date of each, for a run may be made in parts. {about}

{sums(found)}
{tables(found)}

## A worker that is gone

How soon others begin what it ran, in the median and at most, at the default settings: workers that are killed with their
containers, cut from the network, or frozen for {takeover.FROZEN:g} s. A thawed worker may not begin what it held and had not
begun, and no task may run more than twice. Written by `python -m tests.faults.takeover`.

{takeover.table()}

## The faults

| fault | what happens | lasts, s | why a task may be done twice |
| --- | --- | --- | --- |
{what}

"Plain" is `Celery(broker, backend)` and nothing else, on the same images, with the same pools, concurrency,
started again by the engine when it ends, as celery-kit's workers are.
"""
    )


if __name__ == "__main__":
    main()
