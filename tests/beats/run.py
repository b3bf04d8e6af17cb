"""`make test-beats`: the trials, some at a time, and docs/reports/beats.md. BROKER= BEATS= choose some, FAULTS=20 each."""

import json
import os
import platform
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NoReturn

from celery_kit.base.refusals import choose, whole_number
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from testbed.servers import SERVERS
from testbed.stack import Stack
from tests.beats.setup import Setup, make_clock
from tests.beats.trial import LASTS, LATE, run
from tests.harness.servers import Server

NOTES, REPORT = ROOT / "reports/beats.jsonl", ROOT / "docs/reports/beats.md"
NUMBERS = ("2", "3")
#: What the page says of a trial.
ABOUT = f"""\
Beats on one machine, each behind a TCP link of its own, and a worker that notes what it gets. Faults in turn: a beat is killed
(SIGKILL) and started {LASTS["kill"]:g} s later; frozen (SIGSTOP) for {LASTS["freeze"]:g} s; cut off from the broker for
{LASTS["cut"]:g} s, so that nothing passes and nothing is refused; its clock is set by 40 s, an hour or a day, ahead or back,
for {LASTS["clock"]:g} s. Three of four hit the beat that leads. The timetable has entries that are due at each full minute, and
at intervals from 16 to 22 s. `twice` and `never` count due times, and messages that differ in number from the runs that
the broker has noted; `latest` is from a due time until the task ran: at most {LATE:g} s are allowed."""
PACKAGES = ("celery", "kombu", "amqp", "redis")


@contextmanager
def server(broker: str, which: str) -> Iterator[tuple[str, str, str]]:
    """A server of its own, as a stack starts it: the URL of a beat, that of the worker and the trial, and the product."""
    if broker not in SERVERS:
        with Server() as embedded:
            url = embedded.urls["CELERY_BROKER_URL"]
            yield url, url, f"Valkey {embedded.broker.info()['valkey_version']}"
        return
    row = SERVERS[broker]
    with Stack(broker, f"beats{which}", ("broker",)) as stack:
        url = row.url.format(host="127.0.0.1", port=stack.port(row.port), namespace=row.default)
        yield stack.url_for("beat", url), url, row.version(stack.port)


def _stop(*_: object) -> NoReturn:
    """Exit by an exception, so that everything started is removed. Another signal does not stop that."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, signal.SIG_IGN)
    raise KeyboardInterrupt


def trial(broker: str, number: str, faults: int, seed: int) -> dict[str, Any]:
    """One trial, with a server of its own."""
    for asked in (signal.SIGTERM, signal.SIGINT):
        signal.signal(asked, _stop)
    with server(broker, number) as (beats, others, product), Setup(beats, others, int(number)) as setup:
        found = {"broker": broker, "beats": int(number), "product": product, **run(setup, faults, seed)}
        if found["twice"] or found["never"] or found["late"]:
            kept = ROOT / f"reports/beats-{broker}-{number}"
            kept.mkdir(parents=True, exist_ok=True)
            for file in setup.folder.glob("*"):
                (kept / file.name).write_bytes(file.read_bytes())
    return {**found, "date": f"{datetime.now(UTC):%F}"}


def chosen(name: str, allowed: list[str]) -> list[str]:
    given = os.environ.get(name)
    return [choose(name, one, allowed) for one in given.split(",")] if given else allowed


def report(rows: list[dict[str, Any]]) -> str:
    """The page."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    dates = sorted({row["date"] for row in rows})
    lines = [
        "# Beats that lead and follow",
        "",
        textwrap.fill(ABOUT, 128),
        "",
        f"Written by `make test-beats`, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, {versions}.",
        "",
        "| broker | beats | due times | faults | of them on the leader | twice | never | latest |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        led = sum(number for kind, number in row["kinds"].items() if kind.endswith("leader"))
        cells = (row["broker"], row["product"], row["beats"], row["due"], row["faults"], led, row["twice"], row["never"])
        lines.append("| {} ({}) | {} | {} | {} | {} | {} | {} |".format(*cells) + f" {row['latest']:.1f} s |")
    return "\n".join(lines) + "\n"


def every(wanted: list[tuple[str, str]]) -> bool:
    """Run each of the trials in a process of its own: they wait for most of their time. Returns whether all have succeeded."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    argv = [sys.executable, "-m", "tests.beats.run"]
    runs = [subprocess.Popen(argv, env={**os.environ, "BROKER": broker, "BEATS": number}) for broker, number in wanted]
    try:
        codes = [one.wait() for one in runs]
        return not any(codes)
    except BaseException:
        for one in runs:
            one.terminate()
        for one in runs:
            one.wait()
        raise


def main() -> None:
    faults = whole_number("FAULTS", os.environ.get("FAULTS") or "20", 1, 1_000)
    wanted = [(broker, number) for broker in chosen("BROKER", list(BROKERS)) for number in chosen("BEATS", list(NUMBERS))]
    make_clock()
    NOTES.parent.mkdir(exist_ok=True)
    if len(wanted) > 1:
        succeeded = every(wanted)
        rows = {(row["broker"], row["beats"]): row for row in map(json.loads, NOTES.read_text().splitlines())}
        REPORT.write_text(report([rows[key] for key in sorted(rows)]))
        sys.exit(not succeeded)
    for name in ("BROKER", "BEATS", "BACKEND", "POOL"):
        os.environ.pop(name, None)
    ((broker, number),) = wanted
    print(found := trial(broker, number, faults, list(BROKERS).index(broker) * len(NUMBERS) + int(number)), flush=True)
    with NOTES.open("a") as notes:
        notes.write(json.dumps(found) + "\n")
    sys.exit(bool(found["twice"] or found["never"] or found["late"]))


if __name__ == "__main__":
    main()
