"""`make test-migrate`: moves under load, killed, rolled back, killed at each point, from plain Celery; writes a report.

Each outcome is a line of reports/migrate.jsonl. ONLY=load|points|plain does a part; the report has the last of each.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import count, product
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from celery import Celery
from redis import Redis

from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from testbed.servers import SERVERS
from testbed.servers.rabbitmq import virtual_host
from tests.harness.servers import Server, rabbitmq
from tests.migrate import ends, moves
from tests.migrate.ends import Place
from tests.migrate.killed import POINTS
from tests.migrate.trials import DELAY, RATE, WAYS, Trial, run

NOTES, REPORT = ROOT / "reports/migrate.jsonl", ROOT / "docs/reports/migrate.md"
PARTS = ("load", "points", "plain")
KINDS = ("redis", "rabbitmq")
FIGURES = ("seconds", "tasks", "while it moved", "dead", "failed", "lost", "twice")
PACKAGES = ("celery", "kombu", "amqp", "redis")
#: What is killed in its second batch: as many messages as three batches have.
QUEUED, DELAYED, OTHERS = 300, 30, 120
#: Points at which no command is sent to a server of this kind by the step.
NOT_THERE = {
    "redis": {f"half {step}" for step in ("claim", "store", "drop", "forget")},
    "rabbitmq": {"half drop", "half forget"},
}
Outcome = dict[str, Any]


class Servers:
    """A Redis server and a RabbitMQ, and new places on them."""

    def __init__(self, redis: Server, url: str, management: int) -> None:
        self.redis, self.url, self.management = redis, url, management
        self._databases = count()

    def place(self, kind: str) -> Place:
        """An empty database or virtual host."""
        if kind == "rabbitmq":
            host = virtual_host(f"http://127.0.0.1:{self.management}/api", f"move-{uuid4().hex[:8]}")
            return Place(f"{self.url.rpartition('/')[0]}/{host}", self.management)
        number = 2 + next(self._databases) % 10
        Redis(port=self.redis.port, db=number).flushdb()
        return Place(f"redis://127.0.0.1:{self.redis.port}/{number}")

    def database(self, number: int) -> str:
        """The URL of one that is no place."""
        Redis(port=self.redis.port, db=number).flushdb()
        return f"redis://127.0.0.1:{self.redis.port}/{number}"


@contextmanager
def servers() -> Iterator[Servers]:
    """Started, or with TEST_RABBITMQ a running RabbitMQ."""
    with ExitStack() as stack:
        url, running = stack.enter_context(rabbitmq())
        given = os.environ.get("TEST_RABBITMQ", "").split()
        management = running.port(15672) if running else int(given[1])
        yield Servers(stack.enter_context(Server()), url, management)


def under_load(servers: Servers, source: str, target: str, way: str) -> Outcome:
    """A move with workers that run."""
    size = 10 if os.environ.get("QUICK") else 100
    trial = Trial(servers.place(source), servers.place(target), servers.database(15), servers.database(14), size)
    try:
        return run(trial, way)
    finally:
        for worker in trial.workers.values():
            worker.kill()


def at_a_point(servers: Servers, source: str, target: str, point: str) -> Outcome:
    """A move that is killed at a point, and run again: the target has what the source had, and nothing is left."""
    from_, to = servers.place(source), servers.place(target)
    if source == "redis":
        ends.sign(from_)
    ends.fill(from_, QUEUED, DELAYED, OTHERS, OTHERS)
    if target == "redis":
        ends.sign(to)
    before = ends.found(from_)
    killed, again = moves.tool(from_, to, point, "2"), moves.tool(from_, to)
    after, left = ends.found(to), ends.found(from_)
    wrong = ends.difference(before, after)
    return {
        "killed": killed.returncode == -9,
        "moved": sum(after.values()),
        "fine": not wrong and not left and again.returncode == 0 and sum(before.values()) == QUEUED + DELAYED + 2 * OTHERS,
        "wrong": str(wrong or left or again.stderr)[:500],
    }


def from_plain(servers: Servers, source: str, target: str) -> Outcome:
    """A move of what plain Celery has sent, to an empty place of the kit's."""
    from_, to = servers.place(source), servers.place(target)
    app = Celery("plain", broker=from_.url, set_as_current=False)
    for number in range(QUEUED):
        app.send_task(ends.TASK, [number])
    for number in range(DELAYED):
        app.send_task(ends.TASK, [number], countdown=3_600)
    app.close()
    before, done, after = ends.found(from_), moves.tool(from_, to), ends.found(to)
    wrong = ends.difference(ends.wherever(before), ends.wherever(after))
    return {"moved": sum(after.values()), "fine": not wrong and done.returncode == 0, "wrong": str(wrong or done.stderr)[:500]}


def trials() -> Iterator[tuple[str, str, str, str]]:
    """Parts, sources, targets, and what each does."""
    for source, target, way in product(KINDS, KINDS, WAYS):
        if source != target:
            yield "load", source, target, way
    for source, target, point in product(KINDS, KINDS, POINTS):
        first = target if point.endswith(("store", "forget")) else source
        if point not in NOT_THERE[first] and (point != "sent forget" or first == "rabbitmq"):
            yield "points", source, target, point
    for source, target in product(KINDS, KINDS):
        yield "plain", source, target, "sent by plain Celery"


DO: dict[str, Callable[[Servers, str, str, str], Outcome]] = {
    "load": under_load,
    "points": at_a_point,
    "plain": lambda servers, source, target, _: from_plain(servers, source, target),
}


def outcomes() -> dict[tuple[str, ...], Outcome]:
    """The last of each trial."""
    lines = map(json.loads, NOTES.read_text().splitlines()) if NOTES.exists() else ()
    return {tuple(one["trial"]): one for one in lines if not one.get("quick")}


def note(trial: tuple[str, ...], outcome: Outcome) -> None:
    """Append an outcome."""
    NOTES.parent.mkdir(exist_ok=True)
    with NOTES.open("a") as file:
        about = {"at": f"{datetime.now(UTC):%F}", "quick": bool(os.environ.get("QUICK"))}
        file.write(json.dumps({"trial": trial, **outcome, **about}) + "\n")


ABOUT = """
Messages that are moved while producers and workers run, killed, rolled back, as far as the tables go: what is not in them, or
is an empty cell, was not tried at full size. Written by `make test-migrate`, {dates}; {cores} cores, Python {python},
{packages}; {versions}.
"""
LOAD = """
The source has 5,000 tasks in its queue, 500 that are due {delay} s later, 100 dead letters, 100 failed tasks, and a worker
that is stopped as the move begins. A producer sends {rate} tasks a second, and goes over first. A worker runs at the target.
Each task counts its runs in Redis; dead letters and failed tasks are sent back at the target. Killed: SIGKILL, five times at
random, and run again. Rolled back: killed, run again, all of it moved back, to a worker there, and over again.
"""
AT_POINTS = """
{queued} queued, {delayed} delayed, {others} dead and {others} failed messages; the move kills itself in its second batch, and
is run again. Half: after 10 messages are sent to RabbitMQ. Sent: the command that decides is sent, its answer not read. Then
the target must have each message once, with its id, headers, priority, ETA, expiry, queue, body and reason, and the source
none.
"""
PLAIN = """
{queued} tasks, and {delayed} with an ETA, sent by Celery without the kit (a classic queue, kombu's lists). Those with an ETA
wait in the target's own way afterwards, or in its queue where no worker of the kit runs yet.
"""


def report(versions: str) -> str:
    """The report's text."""
    found = outcomes()
    dates = sorted({outcome["at"] for outcome in found.values()})
    words = {
        "dates": " to ".join(dict.fromkeys([dates[0], dates[-1]])),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "versions": versions,
        **{"delay": DELAY, "rate": RATE, "queued": QUEUED, "delayed": DELAYED, "others": OTHERS},
    }
    about, load, points, plain = (
        textwrap.fill(" ".join(text.format(**words).split()), 128) for text in (ABOUT, LOAD, AT_POINTS, PLAIN)
    )
    under = [
        ("from", "to", "", "seconds", "tasks", "sent meanwhile", "dead", "failed", "lost", "run twice"),
        *((*one[1:], *(f"{it[name]:,}" for name in FIGURES)) for one, it in found.items() if one[0] == "load"),
    ]
    pairs = list(product(KINDS, KINDS))
    at = [
        ("point", *(f"{source} to {target}" for source, target in pairs)),
        *((point, *(_cell(found.get(("points", *pair, point))) for pair in pairs)) for point in POINTS),
    ]
    from_plain_celery = [
        ("from", "to", "moved", ""),
        *((*one[1:3], str(it["moved"]), _cell({"killed": True, **it})) for one, it in found.items() if one[0] == "plain"),
    ]
    parts = [
        f"# Moves between brokers\n\n{about}",
        f"## Under load\n\n{load}\n\n{_table(under)}",
        f"## Killed at each point\n\n{points}\n\n{_table([row for row in at if any(row[1:])])}",
        f"## From plain Celery\n\n{plain}\n\n{_table(from_plain_celery)}",
    ]
    return "\n\n".join([parts[0], *(part for part in parts[1:] if not part.endswith("--- |"))]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *others])


def _cell(one: Outcome | None) -> str:
    """In words, whether all was moved, by a run that was killed."""
    return "" if one is None else "each once" if one["fine"] and one["killed"] else "**wrong**"


def main() -> None:
    """Run what ONLY names, or all. Exits with 1 if one is wrong."""
    only = choose("ONLY", os.environ["ONLY"], PARTS) if os.environ.get("ONLY") else ""
    wrong = 0
    with servers() as running:
        info: Any = running.redis.broker.info("server")
        product_ = f"Valkey {info['valkey_version']}" if info.get("valkey_version") else f"Redis {info['redis_version']}"
        for part, source, target, what in trials():
            if only in ("", part):
                began = time.monotonic()
                outcome = DO[part](running, source, target, what)
                note((part, source, target, what), outcome)
                fine = outcome.get("fine", not outcome.get("lost") and not outcome.get("twice"))
                wrong += not fine
                print(part, source, target, what, "fine" if fine else outcome, f"{time.monotonic() - began:.0f} s", flush=True)
        ports = {15672: running.management, 5672: urlsplit(running.url).port or 0}
        versions = f"{SERVERS['rabbitmq'].version(lambda port: ports[port])}, {product_}"
    if not os.environ.get("QUICK"):
        REPORT.write_text(report(versions))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
