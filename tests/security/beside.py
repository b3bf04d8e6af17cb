"""Hostile messages on the kit and on plain Celery, one kind at a time, each with a worker of its own: docs/reports/hostile.md.

`make test-hostile`; it asserts nothing. BROKER= and POOL= choose one; what is known of the others stays in the report.
"""

import bz2
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import amqp
from celery import Celery
from redis import Redis

from celery_kit import Kit
from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from celery_kit.operate.look.dead import each, letters
from celery_kit.pools.table import POOLS
from tests.harness.servers import Server, rabbitmq
from tests.harness.workers import Process, wait_for_worker, worker_argv
from tests.security.conftest import SENDERS, Target, place_of
from tests.security.hostile import EMBED, Hostile, body, deep, deep_dict, deep_table, good, raw

TASK, REPORT = "security.touch", ROOT / "docs/reports/hostile.md"
APPS = {"celery-kit": "tests.security.app", "plain Celery": "tests.security.plain_app"}
#: How often each message is sent - as often as the worker has children -, its canaries, and the seconds for these.
COPIES, CANARIES, SECONDS = 2, 4, 12
PICKLE = b"cos\nsystem\n(S'echo ran > \"$RUNS.code\"'\ntR."


def header(**changes: Any) -> Callable[[], Hostile]:
    """A message with these headers."""
    return lambda: Hostile("", good(TASK, **changes), body=body())


def content(made: bytes | Callable[[], bytes], **changes: Any) -> Callable[[], Hostile]:
    """A message with this body, and these headers."""
    return lambda: Hostile("", good(TASK, **changes), body=made if isinstance(made, bytes) else made())


def item(name: str, text: str) -> Callable[[], Hostile]:
    """An item of a Redis list with a header whose JSON is this text."""
    return lambda: Hostile("", good(TASK), raw=raw(TASK, name, text))


MESSAGES: dict[str, Callable[[], Hostile]] = {
    "`stamped_headers: 1`": header(stamped_headers=1),
    "`id: [[\"x\"]]`": header(id=[["x"]]),
    "`id: 5`": header(id=5),
    "`shadow: [1]`": header(shadow=[1]),
    "`errbacks: 5`": content(body(embed=EMBED | {"errbacks": 5})),
    "`chain: [5]`": content(body(embed=EMBED | {"chain": [5]})),
    "a chain's signature without options": content(body(embed=EMBED | {"chain": [{"task": "no"}]})),
    "an empty ETA": header(eta=""),
    "a body that is a text of three characters": content(b'"0e9"'),
    "a body 5,000 deep": content(deep_dict(5_000).encode()),
    "a header 10,000 deep": item("extra", deep(10_000)),
    "an AMQP table 2,000 deep": lambda: Hostile("", good(TASK), body=body(), table=deep_table(TASK, 2_000)),
    "`{\"__type__\": \"datetime\", \"__value__\": 1}`": item("extra", '{"__type__": "datetime", "__value__": 1}'),
    "a delivery tag that is a lone surrogate": lambda: Hostile("", good(TASK), {"delivery_tag": "\ud800"}, body()),
    "300 kB of zlib that become 300 MB": content(lambda: zlib.compress(bytes(300_000_000), 9), compression="zlib"),
    "bzip2 of 200 MB": content(lambda: bz2.compress(bytes(200_000_000)), compression="bzip2"),
    "a task's name of 100,000 characters": header(task="t" * 100_000),
    "a pickle that runs code": lambda: Hostile("", good(TASK), {}, PICKLE, "application/x-python-serialize", "binary"),
    "no such task": header(task="no.such"),
    "no message": lambda: Hostile("", raw=b"x"),
}  # fmt: skip


def trial(target: Target, side: str, pool: str, make: Callable[[], Hostile]) -> str | None:
    """What becomes of a message; None if the broker has no form for it."""
    queue = f"beside-{uuid4().hex[:8]}"
    runs = target.folder / f"{queue}.runs"
    runs.touch()
    app: Celery = Kit("beside", set_as_current=False) if side == "celery-kit" else Celery("beside", set_as_current=False)
    app.conf.update(broker_url=target.urls["CELERY_BROKER_URL"], result_backend=target.urls["CELERY_RESULT_BACKEND"])
    if side == "celery-kit":
        each(app, lambda _: "drop")
    about = {**target.urls, "RUNS": str(runs), "DATA_DIR": str(target.folder)}
    worker = Process(worker_argv(APPS[side], pool, queue, concurrency=str(COPIES)), target.folder / f"{queue}.log", about)
    try:
        wait_for_worker(worker)
        before = peak(worker)
        if not target.send(queue, iter([make() for _ in range(COPIES)])):
            return None
        answered = canaries(app, queue, worker)
        more, alive, dead = peak(worker) - before, worker.alive, letters(app) if side == "celery-kit" else []
        said, ran = worker.said, len(runs.read_text().splitlines())
        with suppress(Exception):
            worker.stop(10)
        held = left(target, queue)
    finally:
        worker.kill()
    words = ["**the worker ended**"] if not alive else []
    words += ["**it reconnected**"] if said.count("onnection to broker lost") and alive else []
    if alive and answered < CANARIES:
        words.append(
            "**it takes no more tasks**"
            if not answered
            else f"**{CANARIES - answered} of {CANARIES} tasks were lost or stuck**"
        )
    words += ["**code ran**"] if Path(f"{runs}.code").exists() else []
    words += [f"**{held} stay for the next worker**"] if held else []
    words += [f"ran {ran} times"] if ran else []
    words += [f"dead-lettered: {dead[0].reason.replace('|', ' ')[:60]}"] if dead else []
    words += [f"**{more / 1e6:.0f} MB**"] if more > 100_000_000 else []
    return "; ".join(words) or "dropped, after a line of log"


def peak(worker: Process) -> int:
    """The most memory of a worker's main process so far, in bytes; 0 if it has exited."""
    try:
        lines = Path(f"/proc/{worker.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
    except (OSError, StopIteration):
        return 0


def canaries(app: Celery, queue: str, worker: Process) -> int:
    """How many of CANARIES tasks have a result within SECONDS."""
    sent = [app.send_task("security.canary", [number], queue=queue) for number in range(CANARIES)]
    until = time.monotonic() + SECONDS
    while (found := sum(one.ready() for one in sent)) < CANARIES and worker.alive and time.monotonic() < until:
        time.sleep(0.2)  # between two looks
    return found


def left(target: Target, queue: str) -> int:
    """How many messages of the queue the broker still has."""
    url = target.urls["CELERY_BROKER_URL"]
    if target.broker == "redis":
        client: Any = Redis.from_url(url)
        return int(client.llen(queue) + sum(queue.encode() in value for value in client.hvals("unacked")))
    with amqp.Connection(**place_of(url)) as connection:
        counted: Any = connection.channel().queue_declare(queue, passive=True)
        return int(counted.message_count)


def targets(folder: Path, names: list[str]) -> Iterator[Target]:
    """A broker after the other."""
    if "redis" in names:
        with Server() as server:
            yield Target("redis", server.urls, folder)
    if "rabbitmq" in names:
        with rabbitmq("results") as (url, stack):
            results = os.environ.get("CELERY_RESULT_BACKEND") or (stack and stack.results_url(3))
            yield Target("rabbitmq", {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": str(results)}, folder)


def rows(target: Target, pool: str) -> list[str]:
    """The lines of a table, a message each."""
    found = []
    for name, make in MESSAGES.items():
        cells = [trial(target, side, pool, make) for side in APPS]
        if any(cells):
            found.append(f"| {name} | {' | '.join(one or '-' for one in cells)} |")
            print(found[-1], flush=True)
    return found


def write(measured: dict[str, list[str]]) -> None:
    """Write the report. What an earlier run has found of another broker or pool stays in it."""
    earlier = REPORT.read_text().split("\n## ")[1:] if REPORT.exists() else []
    sections = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in earlier}
    head = [f"| {COPIES} times | {' | '.join(APPS)} |", f"| --- |{' --- |' * len(APPS)}"]
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "amqp", "redis"))
    for name, lines in measured.items():
        sections[name] = "\n".join([f"{datetime.now(UTC):%F}; {versions}.", "", *head, *lines])
    REPORT.write_text(
        f"""# Hostile messages, beside plain Celery

Each kind of message is sent {COPIES} times to a worker of its own: prefork with {COPIES} children, or solo, both with late
acknowledgement. Then the worker gets {CANARIES} ordinary tasks, and has {SECONDS} s for these. Bold is what should not be. What
"stays for the next worker" is what the broker has after the worker was stopped, ordinary tasks too. Memory is that of the
worker's main process, more than before. "Dropped": it neither ran, nor is anything else known of it.

Written by `make test-hostile`. It asserts nothing; `make test-security` does, for the kit.

"""
        + "\n".join(f"## {name}\n\n{section}\n" for name, section in sections.items())
    )


def main() -> None:
    """Run all trials, and write the report."""
    chosen = os.environ.get("BROKER")
    names = [choose("BROKER", chosen, SENDERS)] if chosen else list(SENDERS)
    pools = [choose("POOL", one, POOLS)] if (one := os.environ.get("POOL")) else ["prefork", "solo"]
    with tempfile.TemporaryDirectory() as folder:
        for target in targets(Path(folder), names):
            write({f"{target.broker}, {pool}": rows(target, pool) for pool in pools})


if __name__ == "__main__":
    main()
