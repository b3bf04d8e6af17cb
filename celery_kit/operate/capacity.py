"""The model of `make plan`, as docs/capacity.md explains it: workers, slots, cores, memory and disk for tasks at a rate.

Times are in seconds, rates in tasks/s, sizes in bytes. A slot runs one task at a time: a child process, a thread, a greenlet.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from celery_kit.base.choices import MOST_CONCURRENCY
from celery_kit.pools.table import POOLS

#: The share of its time that a slot, a core, or the one core of a process is busy at most.
SLOTS, CORES, PROCESS = 0.8, 0.8, 0.7
#: A limit of memory is so many times what is used, in whole steps.
ROOM, STEP = 1.5, 32 * 2**20
#: Slots of a worker with threads at most. One with an event loop has MOST_CONCURRENCY.
THREADS = 64


@dataclass(frozen=True)
class Ask:
    """What is to be carried: tasks of `payload` bytes at a rate, each of which takes `seconds` and computes for `cpu` of them.

    `variation`: the standard deviation of a task's time as a share of its mean; 0 if all take the same. `wait`: 95 % of tasks
    start within it. `outage`: for how long no worker works, at most. `kept`: for how long a result is. `cores`: of a machine.
    """

    broker: str
    pool: str
    rate: float
    seconds: float
    cpu: float
    payload: int
    wait: float
    variation: float = 1.0
    outage: float = 600.0
    kept: float = 86_400.0
    cores: int = 2


@dataclass(frozen=True)
class Figures:
    """What was measured of a broker and a pool.

    `worker`, `broker`, `results`: by the rate at which tasks arrive, CPU seconds a task of a worker and of the servers, where
    None is a broker that stores them. `byte`: the worker's and the broker's for each byte of a task. `memory`: of a worker with
    two slots, `child`: of each further child process. `message`, `disk`: by a task's size, what one takes that waits. `result`:
    memory of a result. `empty`: of a broker without tasks. `pickup`: from sending to the result, if a slot is free.
    `most`: the highest rate that was measured through one broker.
    """

    worker: Mapping[float, float]
    broker: Mapping[float, float]
    results: Mapping[float, float] | None
    byte: tuple[float, float]
    memory: float
    child: float
    message: Mapping[float, float]
    disk: Mapping[float, float]
    result: float
    empty: float
    pickup: float
    most: float


@dataclass(frozen=True)
class Plan:
    """The answer. `capacity`: tasks/s that the workers do at most. `p95`: the wait to expect. `cpu`: cores that are busy on
    average, by what keeps them busy. `cores`: of one machine for all of it. `machines`: of `ask.cores`, for workers alone.
    `memory`: the limit of a worker.
    """

    ask: Ask
    workers: int
    concurrency: int
    capacity: float
    p95: float
    cpu: Mapping[str, float]
    cores: int
    machines: int
    memory: int
    broker_memory: float
    results_memory: float
    disk: float

    @property
    def share(self) -> int:
        """The workers on one machine."""
        return math.ceil(self.workers / self.machines)

    @property
    def backlog(self) -> float:
        """Tasks that wait after the outage."""
        return self.ask.rate * self.ask.outage

    def gone(self, backlog: float) -> float:
        """How long until a backlog is gone, while tasks still arrive."""
        return backlog / (self.capacity - self.ask.rate)

    def after_a_loss(self) -> tuple[float, float]:
        """Without the workers of one machine: tasks/s that the others do at most, and the backlog after the outage."""
        left = self.capacity * (self.workers - self.share) / self.workers
        return left, max(0.0, self.ask.rate - left) * self.ask.outage


def at(points: Mapping[float, float], where: float) -> float:
    """The value at `where` between measured points, on straight lines in logarithms; outside of them, that of the nearest."""
    known = sorted(points)
    if where <= known[0] or where >= known[-1]:
        return points[known[0] if where <= known[0] else known[-1]]
    upper = next(one for one in known if one >= where)
    lower = known[known.index(upper) - 1]
    part = math.log(where / lower) / math.log(upper / lower)
    return math.exp((1 - part) * math.log(points[lower]) + part * math.log(points[upper]))


def line(points: Mapping[float, float], where: float) -> float:
    """The value at `where` on the straight line through two measured points, and not below zero."""
    (one, first), (other, second) = sorted(points.items())
    return max(0.0, first + (second - first) * (where - one) / (other - one))


def waiting(slots: int, busy: float) -> float:
    """The share of tasks that find no free slot (Erlang C). `busy`: the slots that are taken on average, fewer than `slots`."""
    blocked = 1.0  # Erlang B, slot by slot
    for number in range(1, slots + 1):
        blocked = busy * blocked / (number + busy * blocked)
    return blocked / (1 - busy / slots * (1 - blocked))


def p95(slots: int, rate: float, seconds: float, variation: float = 1.0) -> float:
    """The wait for a slot that 95 % of the tasks stay below; infinite if more arrive than can be done.

    By Erlang C for exponentially distributed times; for others, times (1 + variation^2) / 2, as Allen and Cunneen propose.
    """
    busy = rate * seconds
    if busy >= slots:
        return math.inf
    return max(0.0, math.log(max(waiting(slots, busy), 1e-300) / 0.05) * seconds / (slots - busy)) * (1 + variation**2) / 2


def made(ask: Ask, known: Figures) -> Plan:
    """The fewest workers and slots that carry what is asked. Raises ValueError if no number of them would."""
    if known.pickup >= ask.wait / 2:
        raise ValueError(f"WAIT_P95={ask.wait:g} is too short: with all slots free a task takes {known.pickup:g} s to and fro")
    if ask.rate > known.most:
        raise ValueError(f"RATE={ask.rate:g} is beyond what was measured through one broker: {known.most:,.0f} tasks/s at most")
    row, workers = POOLS[ask.pool], 1
    shared = not row.has_children and "tasks_overlap" not in row.limits  # its tasks take turns on one core
    while True:
        own = at(known.worker, ask.rate / workers) + ask.payload * known.byte[0]
        in_process = own + ask.cpu if shared else own
        turns = p95(1, ask.rate / workers, in_process)
        if ask.rate / workers * in_process <= PROCESS and turns <= ask.wait / 2:
            break
        workers += 1
    taken, spent = ask.seconds + own, ask.cpu + own
    slots = max(1, math.ceil(ask.rate * taken / SLOTS))
    while p95(slots, ask.rate, taken, ask.variation) > ask.wait - turns - known.pickup:
        slots += 1
    workers = max(workers, math.ceil(slots / _most(ask, spent / taken)))
    concurrency = math.ceil(slots / workers)
    slots = workers * concurrency
    cpu = {"workers": ask.rate * spent, "broker": ask.rate * (at(known.broker, ask.rate) + ask.payload * known.byte[1])}
    cpu |= {"results": ask.rate * at(known.results, ask.rate)} if known.results else {}
    # Processes that compute at once need a core each.
    of_workers = max(cpu["workers"] / CORES, 0.0 if shared else slots * spent / taken)
    of_servers = sum(value for name, value in cpu.items() if name != "workers") / CORES
    backlog, results = ask.rate * ask.outage, ask.rate * ask.kept * known.result
    used = known.memory + max(0, concurrency - 2) * known.child + 4 * concurrency * ask.payload
    return Plan(
        ask,
        workers,
        concurrency,
        capacity=min(slots / taken, workers / in_process),
        p95=p95(slots, ask.rate, taken, ask.variation) + turns + known.pickup,
        cpu=cpu,
        cores=math.ceil(of_workers + of_servers - 1e-9),
        machines=min(workers, max(1, math.ceil(of_workers / ask.cores - 1e-9))),
        memory=math.ceil(used * ROOM / STEP) * STEP,
        broker_memory=known.empty + backlog * line(known.message, ask.payload),
        results_memory=results,
        # What was measured is one letter, which a server may compress. A file of results is rewritten at twice its size.
        disk=backlog * max(line(known.disk, ask.payload), ask.payload) + 2 * results,
    )


def _most(ask: Ask, share: float) -> int:
    """Slots of one worker at most. A child process is one, and keeps `share` of a core busy."""
    row = POOLS[ask.pool]
    if "tasks_overlap" in row.limits:
        return 1
    if row.has_children:
        return max(1, math.floor(ask.cores / share + 1e-9))
    return MOST_CONCURRENCY if row.sockets_patched else THREADS
