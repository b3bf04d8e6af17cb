"""No message ends a worker, takes a slot of its pool, or vanishes: it runs, or is a dead letter. celery_kit/base/gate.py"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_kit import Kit
from celery_kit.base.choices import ENGINES
from celery_kit.brokers import BROKERS
from celery_kit.operate.look.dead import each, letters
from celery_kit.pools.table import POOLS
from tests.fuzz.samples import fuzzed
from tests.harness.waiting import until
from tests.harness.workers import Process
from tests.security.conftest import Target
from tests.security.hostile import GROUPS, MUTATIONS, Hostile

UNACKED = "unacked"  # kombu's name
#: Messages that are sent before the worker has to show that it works, by group.
CHUNK, CHUNKS = 25, {"mutations": 100, "fuzzed": 200}
#: FUZZED=1: what the last `make test-fuzz` has accepted and refused, and nothing else.
KINDS = {"fuzzed": fuzzed} if os.environ.get("FUZZED") else GROUPS
#: The most memory that a worker may take beside its own, in bytes: by engine, because kombu's transport for Redis reads an item
#: of any size.
MEMORY = {"fast": 400_000_000, "plain": 600_000_000}


def children(pid: int) -> set[int]:
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        found |= set(map(int, (task / "children").read_text().split()))
    return found


def peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def chunks(messages: Iterator[Hostile], size: int) -> Iterator[list[Hostile]]:
    while chunk := list(islice(messages, size)):
        yield chunk


def canary(app: Celery, queue: str, worker: Process, after: list[Hostile]) -> float:
    """Seconds that the worker takes for a task. Fails if it does not do it, with what it got before."""
    began = time.monotonic()
    for number in range(4):  # one of them may go to a slot that was lost
        sent = app.send_task("security.canary", [number], queue=queue)
        try:
            assert sent.get(timeout=60) == number
        except Exception as error:
            names = [one.what for one in after]
            raise AssertionError(f"{error!r} after {names}\n{worker.said[-6000:]}") from None
    return time.monotonic() - began


def held(target: Target) -> set[bytes]:
    """The tags of the messages that are unacknowledged, where a broker lists them."""
    if "redis" not in BROKERS[target.broker].schemes:
        return set()
    client: Any = Redis.from_url(target.urls["CELERY_BROKER_URL"])
    return set(client.hkeys(UNACKED))


def some() -> list[tuple[str, str, str]]:
    """Each pool with each engine and each group of messages; with QUICK=1 each group on one pool, all pools in turn."""
    if os.environ.get("QUICK"):
        return [(pool, ENGINES[0], group) for pool, group in zip([*POOLS, *POOLS], KINDS, strict=False)]
    return list(product(POOLS, ENGINES, KINDS))


@pytest.mark.timeout(900 + MUTATIONS)
@pytest.mark.parametrize(("pool", "engine", "group"), some())
def test_no_message_ends_a_worker_or_vanishes(target: Target, queue: str, pool: str, engine: str, group: str) -> None:
    if group == "items" and "redis" not in BROKERS[target.broker].schemes:
        pytest.skip("an item that is no message exists only in a list of Redis: AMQP's frames carry whole messages")
    app = Kit("hostile", set_as_current=False)
    app.conf.update(broker_url=target.urls["CELERY_BROKER_URL"], result_backend=target.urls["CELERY_RESULT_BACKEND"])
    each(app, lambda _: "drop")  # of an item that is there already there would be one letter for both
    others = held(target)  # of workers that other tests have ended
    with target.worker(pool, engine, queue) as worker:
        canary(app, queue, worker, [])
        before, memory, sent, slowest = children(worker.process.pid), peak(worker.process.pid), 0, 0.0
        for chunk in chunks(KINDS[group]("security.touch"), CHUNKS.get(group, CHUNK)):
            sent += target.send(queue, iter(chunk))
            slowest = max(slowest, canary(app, queue, worker, chunk))
        # Failed tasks are kept a moment later, and another child may be quicker than the one with the last message.
        with suppress(AssertionError):
            until("each has run, or is a dead letter", lambda: len(letters(app)) + target.runs(queue) >= sent, 30, 0.5)
        found = letters(app)
        until("it has as many children as at first", lambda: len(children(worker.process.pid)) == len(before), 30, 0.5)
        ended = before - children(worker.process.pid)
        assert worker.alive
        assert len(ended) <= worker.said.count("Hard time limit")  # which a message may set, however short
        assert "onnection to broker lost" not in worker.said
        more = peak(worker.process.pid) - memory
        runs = target.runs(queue)
        print(f"\n{pool} {engine} {group}: {sent} sent, {runs} ran, {len(found)} dead, {more / 1e6:.0f} MB, {slowest:.1f} s")
        assert len(found) + runs >= sent
        assert more < MEMORY[engine]
        assert worker.stop() == 0
        assert not held(target) - others
