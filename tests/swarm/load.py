"""Tasks of every group of a stack, sent from within a swarm, and what became of them.

Workers note begin and end of each task in a file that all nodes share (tests/faults/inside/fault_probe.py), the producer the
ids of the tasks that the broker has confirmed.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.faults.ledger import Ledger, Line
from tests.harness.waiting import until
from tests.swarm.nodes import Nodes

#: Workers of each group; tasks that one runs at once; seconds that a task takes; seconds between two tasks of a group.
WORKERS, AT_ONCE, TASK, EVERY = 2, 4, 1.0, 0.25
#: A worker of `solo` runs one task at once.
SHORT = {"solo": 0.2}


def group(pool: str) -> str:
    """A pool's group in the table."""
    own = 'queues = ["solo", "celery"]' if pool == "solo" else f'queues = ["{pool}"]\nconcurrency = {AT_ONCE}'
    return f'[groups.{pool}]\n{own}\npool = "{pool}"\nscale = {{min = {WORKERS}}}\ntime_limit = 20\nmemory = "500m"\n'


TABLE = "".join(map(group, POOLS))
PRODUCER = f"""
import os, time
from kombu.utils.uuid import uuid
from app import app

number = 0
with open("/data/accepted", "a", buffering=1) as accepted:
    while not os.path.exists("/data/enough"):
        number += 1
        for pool in {[*POOLS]}:
            task_id, name = uuid(), ("faults.effect", "faults.effect_once")[number % 2]
            try:
                app.send_task(name, ({SHORT}.get(pool, {TASK}),), task_id=task_id, queue=pool)
            except Exception as error:
                print(repr(error), flush=True)
            else:
                accepted.write(task_id + " " + pool + chr(10))
        time.sleep({EVERY})
"""


@dataclass
class Account:
    """What became of a pool's tasks. Counts are of tasks, times in seconds from the event.

    `lost`: accepted, never done. `twice`: done more than once; `twice_once`: of those with `@once`. `begun_again`: begun more
    than once, so that one run may have been cut off. `longest`: the longest time in which none began. `held`: how many a killed
    node had begun and not done. `back`: until the last of these had begun elsewhere. `full`: until as many workers as the table
    says had begun a task. None: it did not happen, or there were none.
    """

    broker: str
    event: str
    pool: str
    accepted: int = 0
    lost: int = 0
    twice: int = 0
    twice_once: int = 0
    begun_again: int = 0
    longest: float = 0.0
    held: int = 0
    back: float | None = None
    full: float | None = None


class Load:
    """Tasks that flow while something happens to a swarm. `file`: the stack's, as `make stack` has written it."""

    def __init__(self, nodes: Nodes, stack: str, broker: str, file: Path) -> None:
        self.nodes, self.stack, self.broker, self.file = nodes, stack, broker, file
        self.ledger = Ledger(nodes.effects / "effects")

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send tasks during the block; at its end, wait until all of them are done, or nothing is done any more."""
        (self.nodes.effects / "enough").unlink(missing_ok=True)
        (self.nodes.effects / "accepted").unlink(missing_ok=True)
        self._producer()
        try:
            self.begun = time.monotonic()
            until("tasks of every pool run", lambda: {*self._first(self.begun, set())} == {*POOLS}, 120, every=0.5)
            yield
        finally:
            (self.nodes.effects / "enough").touch()
        until("the producer has ended", lambda: self._tasks_of_producer() == "Complete", 60, every=0.5)
        self.nodes.docker("one", "service", "rm", f"{self.stack}-producer")
        last = [0, time.monotonic()]

        def settled() -> bool:
            self.ledger.accepted = set(self.pools())
            if len(self.ledger.lines()) != last[0]:
                last[:] = [len(self.ledger.lines()), time.monotonic()]
            return not self.ledger.missing() or time.monotonic() - last[1] > 100

        until("the accounts are settled", settled, 300, every=0.5)

    def _producer(self) -> None:
        """A service beside the stack, with the settings of a worker and the passwords of a producer."""
        given = json.loads(self.file.read_text())
        worker = next(one for name, one in given["services"].items() if name.startswith("worker-"))
        environ = {name: str(value).replace("$$", "$") for name, value in worker["environment"].items() if value}
        words = ["service", "create", "--detach", "--quiet", "--name", f"{self.stack}-producer", "--restart-condition", "none"]
        words += ["--no-healthcheck", "--network", f"{self.stack}_inside", "--endpoint-mode", "dnsrr"]
        words += ["--mount", f"type=volume,source={self.stack}_data,target=/data"]
        words += ["--constraint", "node.labels.celery-kit.broker==true"]
        for name, value in environ.items():
            words += ["--env", f"{name}={value.replace('.worker', '.producer')}"]
        for one in worker["secrets"]:
            if one["source"].endswith(".producer"):
                words += ["--secret", f"source={given['secrets'][one['source']]['name']},target={one['target']}"]
        self.nodes.docker("one", *words, worker["image"], "python", "-c", PRODUCER)

    def _tasks_of_producer(self) -> str:
        said = self.nodes.docker("one", "service", "ps", "--format", "{{.CurrentState}}", f"{self.stack}-producer")
        return said.partition(" ")[0]

    def pools(self) -> dict[str, str]:
        """By task, its pool: those that the broker has confirmed."""
        file = self.nodes.effects / "accepted"
        text = file.read_text() if file.exists() else ""
        return dict(line.split() for line in text.splitlines()[: text.count("\n")])

    def _first(self, moment: float, without: set[str]) -> dict[str, dict[str, float]]:
        """By pool, by host: seconds from `moment` until its worker began a task."""
        found: dict[str, dict[str, float]] = {}
        for line in self.ledger.lines():
            if line.event == "begin" and line.time >= moment and host(line) not in without:
                found.setdefault(line.node.partition("@")[0], {}).setdefault(host(line), line.time - moment)
        return found

    def all_work(self, moment: float, gone: set[str]) -> bool:
        """Whether as many workers of each pool as the table says have begun a task since. `gone`: hosts that do not count."""
        first = self._first(moment, gone)
        return all(len(first.get(pool, {})) >= WORKERS for pool in POOLS)

    def accounts(self, event: str, moment: float, gone: set[str]) -> list[Account]:
        """What became of the tasks since the load began. `gone`: the host names of workers that the event has ended."""
        self.ledger.accepted = set(self.pools())
        found = [self._account(event, pool, moment, gone) for pool in POOLS]
        file = ROOT / "reports/swarm.jsonl"
        file.parent.mkdir(exist_ok=True)
        with file.open("a") as out:
            out.writelines(json.dumps(asdict(one)) + "\n" for one in found)
        print(*found, sep="\n")
        return found

    def _account(self, event: str, pool: str, moment: float, gone: set[str]) -> Account:
        own = {task for task, one in self.pools().items() if one == pool}
        lines = [line for line in self.ledger.lines() if line.task in own]
        ended = {line.task for line in lines if line.event == "end" and line.time < moment}
        before = [line for line in lines if line.event == "begin" and line.time < moment]
        after = [line for line in lines if line.event == "begin" and line.time >= moment]
        times = sorted(line.time - moment for line in after)
        held = {line.task for line in before if host(line) in gone} - ended
        again: dict[str, float] = {}
        for line in after:
            if line.task in held and host(line) not in gone:
                again.setdefault(line.task, line.time - moment)
        workers = sorted(self._first(moment, gone).get(pool, {}).values())
        return Account(
            self.broker,
            event,
            pool,
            accepted=len(own),
            lost=len(self.ledger.missing() & own),
            twice=len(own & {*self.ledger.repeated()}),
            twice_once=len(own & {*self.ledger.repeated("once")}),
            begun_again=len(own & {*self.ledger.begun_again()}),
            longest=round(max((b - a for a, b in pairwise([0.0, *times])), default=0.0), 1),
            held=len(held),
            back=round(max(again.values()), 1) if held and again.keys() == held else None,
            full=round(workers[WORKERS - 1], 1) if len(workers) >= WORKERS else None,
        )


def host(line: Line) -> str:
    """The host name of the worker that has written a line."""
    return line.node.partition("@")[2]
