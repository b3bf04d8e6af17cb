"""An idle stack: a worker of plain Celery and one of the kit, both up. They are asked in short turns, and then left alone.

What takes a core away for a moment - on a shared machine often the machine itself - is in the slowest hundredth of the answers.
Side by side it meets both alike, which minutes apart it did not.
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

#: Tasks of a turn; its first ones are not counted: while the other had its turn, this side's memory has got cold.
TURN, FIRST = 50, 10
#: Tasks before the first turn: what a process does once, such as collecting the garbage of its imports, is not its pace.
WARM = 100
#: Seconds until a worker that was busy counts as idle: what it had timers for is over.
SETTLED = 2.0


@dataclass
class Side:
    """A contender's worker and what asks it; seconds from the worker's start to its `first` result, ms of the answers."""

    sessions: list[int]
    client: "subprocess.Popen[str]"
    first: float
    times: list[float] = field(default_factory=list)

    def turn(self, number: int) -> None:
        """Send so many, and count their answers."""
        assert self.client.stdin and self.client.stdout and self.client.stderr
        self.client.stdin.write(f"{FIRST + number}\n")
        self.client.stdin.flush()
        if not (said := self.client.stdout.readline()):
            raise NothingDoneError(f"a task got no result: {(self.client.stderr.read().strip() or '?').splitlines()[-1]}")
        self.times += json.loads(said)[FIRST:]


def side_by_side(
    servers: Servers, contenders: tuple[Contender, ...], case: Case, number: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """By contender: p50 and p99 of `number` tasks in ms; CPU in percent of a core over so many seconds of nothing; memory in
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
        time.sleep(seconds)  # what is measured: so long nothing
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
