"""`make test-clusters`: lose the node that leads the queues, in each way, on the kit and on plain Celery; write the report.

BROKER=, POOL=, SIDES= (kit, plain) and FAULT= choose some, with commas between them. The outcome of each trial is added to
reports/clusters.jsonl; docs/reports/clusters.md has the last one of each.
"""

import json
import os
import signal
import sys
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from testbed.servers import EVERY, SERVERS
from tests.clusters.replicas import Replicas
from tests.clusters.setup import Cluster
from tests.clusters.trials import AFTER, BEFORE, FAULTS, LASTS, QUIET, RATED, SOON, STEADY, trial
from tests.harness.containers import clean

NOTES, REPORT = ROOT / "reports/clusters.jsonl", ROOT / "docs/reports/clusters.md"
#: Clusters of another kind than RabbitMQ's nodes.
KINDS = {"redis-sentinel": Replicas}
ENGINES = {"kit": "celery-kit", "plain": "plain Celery"}
#: The least share of the former rate.
RATE = 0.95


def _chosen(variable: str, allowed: Iterable[str]) -> list[str]:
    names = list(allowed)
    given = os.environ.get(variable)
    return [choose(variable, one, names) for one in given.split(",")] if given else names


def main() -> None:
    """Run the trials, and exit with 1 if the kit has not kept what it promises."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    brokers = _chosen("BROKER", [name for name in EVERY if name not in SERVERS and len(EVERY[name].hosts) > 1])
    pools, engines, faults = _chosen("POOL", POOLS), _chosen("SIDES", ENGINES), _chosen("FAULT", FAULTS)
    kept = True
    try:
        for broker in brokers:
            with KINDS.get(broker, Cluster)(broker, tuple(pools)) as cluster:
                product = cluster.stack.server.version(cluster.stack.port)
                for engine in engines:
                    for fault in faults:
                        if not FAULTS[fault].fits(cluster):
                            continue
                        cluster.start_workers(engine)
                        outcome = trial(cluster, fault)
                        one = {**asdict(outcome), "broker": broker, "version": product}
                        note(one)
                        print(f"{broker} {engine} {fault}: {said(one)}", flush=True)
                        kept = kept and (engine != "kit" or not broken(one))
    finally:
        clean()
    REPORT.write_text(report())
    sys.exit(not kept)


def note(outcome: dict[str, Any]) -> None:
    """Add an outcome to the file."""
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a") as file:
        file.write(json.dumps({**outcome, "date": f"{datetime.now(UTC):%F %H:%M}"}) + "\n")


def broken(one: dict[str, Any]) -> list[str]:
    """What of an outcome is not as it should be."""
    found = [f"not made: {one['error']}"] if one["error"] else []
    found += [f"{pool} exited" for pool in one["ended"]]
    found += [f"{lost} lost beside" for waits, (_, lost) in one.get("beside", {}).items() if waits != "0" and lost]
    for pool, its in one["pools"].items():
        found += [f"{pool}: {its['lost']} lost"] if its["lost"] else []
        found += [f"{pool}: paused {its['paused']:g} s"] if its["paused"] > SOON[one["broker"]] else []
        found += [f"{pool}: rate {its['ratio']:g}"] if its["ratio"] < RATE else []
    return found


def said(one: dict[str, Any]) -> str:
    """An outcome in one line."""
    pools = "; ".join(
        f"{pool} {its['accepted']} accepted, {its['lost']} lost, {its['twice']} twice, {its['paused']:g} s, {its['ratio']:g}"
        for pool, its in one["pools"].items()
    )
    sends = "".join(f"waits for {n}: {a} accepted, {lost} lost; " for n, (a, lost) in one.get("beside", {}).items())
    sends += f"{one['refused']} refused, slowest send {one['slowest']:g} s, whole after {one['whole']} s"
    verdict = ", ".join(broken(one)) or "as it should be"
    return f"{one['host']} with {','.join(one['connected']) or 'no worker'}: {pools}; {sends}; {verdict}"


def _cell(its: dict[str, Any] | None, pool: str, one: dict[str, Any]) -> str:
    if its is None:
        return ""
    words = [f"**{its['lost']} lost**" if its["lost"] else "0 lost", f"{its['twice']} twice"]
    words.append(f"**{its['paused']:g} s**" if its["paused"] > SOON[one["broker"]] else f"{its['paused']:g} s")
    words.append(f"**{its['ratio']:g}**" if its["ratio"] < RATE else f"{its['ratio']:g}")
    words += ["**exited**"] if pool in one["ended"] else []
    return f"{', '.join(words)} (of {its['accepted']})"


def report() -> str:
    """The report, from the last outcome of each trial."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for line in NOTES.read_text().splitlines():
        one = json.loads(line)
        key = one["broker"], one["engine"], one["fault"]
        before = found.get(key, {"pools": {}, "connected": [], "ended": []})
        one["pools"] = before["pools"] | one["pools"]  # a run of one pool replaces that pool
        found[key] = one
    parts = []
    for broker in dict.fromkeys(key[0] for key in found):
        for engine, name in ENGINES.items():
            rows = {fault: found.get((broker, engine, fault)) for fault in FAULTS}
            if not any(rows.values()):
                continue
            parts += ["", f"## {broker}, {name}", ""]
            parts += [f"| fault | {' | '.join(POOLS)} | workers on that node | sends that failed, slowest | whole again |"]
            parts += ["|" + " --- |" * (len(POOLS) + 4)]
            for fault, row in rows.items():
                if row:
                    cells = [_cell(row["pools"].get(pool), pool, row) for pool in POOLS]
                    whole = "-" if row["whole"] is None else f"{row['whole']:g} s"
                    parts.append(
                        f"| `{fault}` | {' | '.join(cells)} | {', '.join(row['connected']) or 'none'} "
                        f"| {row['refused']}, {row['slowest']:g} s | {whole} |"
                    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "amqp", "eventlet", "gevent"))
    servers = ", ".join(dict.fromkeys(one["version"] for one in found.values()))
    dates = sorted(one["date"][:10] for one in found.values())
    until = f" to {dates[-1]}" if dates[-1] != dates[0] else ""
    soon = " or ".join(f"{seconds:g} s ({name})" for name, seconds in SOON.items())
    what = "\n".join(f"| `{name}` | {fault.what} |" for name, fault in FAULTS.items())
    return f"""# Clusters that lose a node

The node that leads the queues of all workers, and has most of their connections, is lost for {LASTS:g} s, under load:
{STEADY:g} tasks a second to a worker of each pool, from {BEFORE:g} s before until {AFTER:g} s after the cluster is whole again.
A ledger that no part of Celery knows counts what was accepted and what was done; a task is lost that was accepted and not done
when nothing has been done for {QUIET:g} s.

A cell has the tasks that were lost, and those that were done twice; the longest time from the fault on in which the worker
began no task; and tasks/s in the last {RATED:g} s, divided by those before the fault. Bold is what should not be: more than
{soon}, less than {RATE:g}. celery-kit has its default settings. Plain Celery has the same addresses, late acknowledgement,
quorum queues, and no other settings.

Written by `make test-clusters`, {dates[0]}{until}; {servers}, Python 3.13, {versions}.
{os.environ.get("ABOUT") or "Two cores."}
{chr(10).join(parts)}

## The faults

| fault | what happens to the node |
| --- | --- |
{what}
"""


if __name__ == "__main__":
    main()
