"""An idle stack: a worker of plain Celery and one of the kit run at once. They get tasks in short turns, and then none.

Interruptions by other processes, which are frequent on a shared machine, show in the slowest hundredth of the answers. Workers
that run at the same time suffer equally from them; measured minutes apart, they did not.
"""

import json
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from bench.contenders import PLAIN, PYTHON, Contender
from bench.rounds import ROOT, Case, NothingDoneError, environment, starting, used
from testbed.places import Place, Servers

#: Tasks of a turn. The first ones are not counted, because the other side's turn has displaced this side's data from caches.
TURN, FIRST = 50, 10
#: Tasks before the first turn, for work that a process does once, such as collecting the garbage of its imports.
WARM = 100
#: Seconds until a worker that was busy counts as idle, because its timers have expired.
SETTLED = 2.0


@dataclass
class Side:
    """A contender's worker and its client. `first`: seconds from the worker's start to its first result. Answers are in ms."""

    sessions: list[int]
    client: "subprocess.Popen[str]"
    first: float
    times: list[float] = field(default_factory=list)

    def turn(self, number: int) -> None:
        """Send `number` tasks, and record the latency of each."""
        assert self.client.stdin and self.client.stdout and self.client.stderr
        self.client.stdin.write(f"{FIRST + number}\n")
        self.client.stdin.flush()
        if not (said := self.client.stdout.readline()):
            raise NothingDoneError(f"a task got no result: {(self.client.stderr.read().strip() or '?').splitlines()[-1]}")
        self.times += json.loads(said)[FIRST:]


def side_by_side(
    servers: Servers, contenders: tuple[Contender, ...], case: Case, number: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """By contender: p50 and p99 of the latency of `number` tasks in ms; CPU in percent of a core over idle `seconds`; memory in
    bytes; seconds from the start to the first result. Raises NothingDoneError.
    """
    with ExitStack() as stack:
        sides = {}
        for which, one in enumerate(contenders):
            place = stack.enter_context(servers.place(which))
            sessions, first = stack.enter_context(starting(one, place, case))
            sides[one.name] = Side(sessions, stack.enter_context(_client(one, place, case)), first)
        order = list(sides.values())
        for side in order:
            side.turn(WARM)
            side.times.clear()
        for start in range(0, number, TURN):
            for side in order:
                side.turn(min(TURN, number - start))
            order.reverse()
        time.sleep(SETTLED)
        before, began = {name: used(side.sessions)[0] for name, side in sides.items()}, time.monotonic()
        time.sleep(seconds)  # the idle time that is measured
        return {
            name: _figures(side, used(side.sessions), before[name], time.monotonic() - began) for name, side in sides.items()
        }


def _figures(side: Side, now: tuple[float, int], before: float, seconds: float) -> dict[str, Any]:
    times = sorted(side.times)
    p50, p99 = (times[len(times) * percent // 100] for percent in (50, 99))
    cpu, memory = now
    return {"p50": p50, "p99": p99, "cpu": (cpu - before) / seconds * 100, "memory": memory, "first": side.first}


def _client(contender: Contender, place: Place, case: Case) -> "subprocess.Popen[str]":
    argv = [PYTHON, "-m", "bench.latency", "plain" if contender is PLAIN else "kit"]
    environ, pipe = environment(contender, place, case), subprocess.PIPE
    return subprocess.Popen(argv, cwd=ROOT, env=environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
