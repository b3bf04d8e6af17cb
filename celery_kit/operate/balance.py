"""Keep each worker group of a running stack between its min and its max, by how long tasks wait: `make balance`.

One rule decides, :func:`needed`, on figures of the last WINDOW seconds, :class:`Load`. More workers start at once. Fewer are
there only after the rule has asked for fewer during the whole cooldown, and one at a time: an idle worker stops consuming,
shows that it holds nothing, and is stopped then. A worker that runs or holds a task is never stopped.

The figures are those of `make status`: what waits in the broker, and what workers count (celery_kit/pools/measures.py). How
workers start and stop is up to the stack (celery_kit/operate/stacks/scaling.py).
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate, takewhile
from math import ceil
from pathlib import Path
from typing import IO, NoReturn, TypeAlias

from celery_kit.base.facts import BOUNDS, Server, Vitals
from celery_kit.base.refusals import Absent, refuse, unless_refused
from celery_kit.base.target import ROOT
from celery_kit.operate.current import LOOK_SECONDS, Stack
from celery_kit.operate.groups import Group
from celery_kit.operate.look import idle
from celery_kit.operate.look.status import Snapshot
from celery_kit.operate.stacks.docker import EngineSilentError, last_line
from celery_kit.operate.stacks.scaling import NotScaledError, Scaling

try:
    import fcntl
except ImportError:
    fcntl = Absent("make balance")  # type: ignore[assignment]

#: Seconds that the figures are about, and that a task may wait in a group without a target.
WINDOW, TARGET = 15.0, 10.0
#: The share of the places of fewer workers that may be in use, so that they are enough.
FULL = 0.7
#: Tasks that must have ended so that their number says at which rate workers work.
ENOUGH = 20
#: What a worker has counted since its start: tasks that ended, those that succeeded and their seconds, and the waits by bucket.
Counts: TypeAlias = Sequence[float]
#: Called with a worker's node name and its queues.
Retire: TypeAlias = Callable[[str, Sequence[str]], bool]


@dataclass(frozen=True)
class Load:
    """What a group has to do.

    `workers`: how many it has, with those that start. `slots`: tasks that one of them runs at once. `running`: tasks that run.
    `waiting`: tasks that no worker has begun, in the queues of the group or held by a worker. `oldest`: for how many seconds
    the next task waits, if the broker knows. `late`: within how many seconds 95 % of the tasks were begun. `arriving`: tasks/s.
    `rate`: tasks/s that one worker does; 0: not known. `lasting`: for how many seconds tasks wait without a break.
    """

    workers: int
    slots: int = 1
    running: float = 0.0
    waiting: int = 0
    oldest: float = 0.0
    late: float = 0.0
    arriving: float = 0.0
    rate: float = 0.0
    lasting: float = 0.0

    @property
    def wait(self) -> float:
        """How long tasks wait, in seconds: as measured, or until those that wait now are begun, whichever is longer."""
        begun_in = self.waiting / (self.rate * max(1, self.workers)) if self.rate else self.lasting
        return max(self.late, self.oldest, begun_in)


def needed(load: Load, target: float) -> int:
    """How many workers a group needs so that no task waits longer than `target` seconds.

    While none does: as many as leave a share of their places free, and no more than there are. While some do: as many as do
    what arrives and, within `target`, what waits; not more than have a place for each task, and not fewer than there are.
    """
    if load.wait <= target:
        return min(load.workers, ceil(load.running / (load.slots * FULL)))
    places = ceil((load.running + load.waiting) / load.slots)
    in_time = ceil((load.arriving + load.waiting / target) / load.rate) if load.rate else places
    return max(load.workers, min(places, in_time))


def wish(load: Load, target: float, scale: tuple[int, int], recent: Sequence[int]) -> int:
    """How many workers a group is to have. `scale`: its min and max. `recent`: what it has needed at each look of the cooldown;
    empty: it is not known for as long.
    """
    least, most = scale
    now = needed(load, target)
    if now < load.workers:
        now = max([now, *recent]) if recent else load.workers
    return max(least, min(most, now))


def percentile(waits: Sequence[float], share: float = 0.95) -> float:
    """The seconds within which a share of the tasks was begun, from their numbers by bucket; 0 without any.

    Between the bounds of a bucket its tasks count as spread evenly, as Prometheus' histogram_quantile() does.
    """
    rank = share * sum(waits)
    sums = [0.0, *accumulate(waits)]
    place = next((place for place, number in enumerate(waits) if number and sums[place + 1] >= rank), None)
    if place is None or place >= len(BOUNDS):
        return 0.0 if place is None else BOUNDS[-1]
    lower = BOUNDS[place - 1] if place else 0.0
    return lower + (BOUNDS[place] - lower) * (rank - sums[place]) / waits[place]


def counts(answer: Vitals) -> Counts:
    """What a worker reports that it has counted."""
    measures = answer["measures"] or []
    ended = sum(number for one in measures for number in one["ended"].values())
    waits = [sum(one["waited"][place] for one in measures) for place in range(len(BOUNDS) + 1)]
    return [ended, sum(sum(one["ran"][:-1]) for one in measures), sum(one["ran"][-1] for one in measures), *waits]


def _since(then: Counts, now: Counts) -> Counts:
    """What was counted between two reports of a worker. A worker that has started again meanwhile counts from its start."""
    gone = [one - other for one, other in zip(now, then, strict=True)]
    return gone if min(gone) >= 0 else now


@dataclass(frozen=True)
class Sample:
    """What one look has found about a group, `at` seconds of the monotonic clock. `workers`: what those that answered count."""

    at: float
    slots: int
    running: int
    waiting: int
    oldest: float
    workers: dict[str, Counts]


def _sum(each: Sequence[Counts]) -> Counts:
    return [sum(column) for column in zip(*each, strict=True)] if each else [0.0] * (len(BOUNDS) + 4)


def _counted(samples: Sequence[Sample]) -> tuple[Counts, float]:
    """What the workers of the last look have counted since the first one that they answered, and the sum of those seconds."""
    last = samples[-1]
    firsts = {node: next(one for one in samples if node in one.workers) for node in last.workers}
    each = [_since(first.workers[node], last.workers[node]) for node, first in firsts.items()]
    return _sum(each), sum(last.at - first.at for first in firsts.values())


def _rate(samples: Sequence[Sample]) -> float:
    """Tasks/s that one worker does: as counted while tasks waited, if enough have ended, or else by how long a task takes."""
    busy = [*takewhile(lambda one: one.waiting, reversed(samples))][::-1] or [samples[-1]]
    (ended, *_), seconds = _counted(busy)
    if ended >= ENOUGH:
        return ended / seconds
    (_, done, taken, *_), _ = _counted(samples)
    if not done:
        _, done, taken, *_ = _sum([*samples[-1].workers.values()])
    return samples[-1].slots * done / taken if taken else 0.0


class Watch:
    """The looks at one group."""

    def __init__(self, group: Group, cooldown: float) -> None:
        self.group, self.cooldown = group, cooldown
        self.target = group.target_wait or TARGET
        self._samples = deque[Sample]()
        self._needs = deque[tuple[float, int]]()
        self._answered: set[str] = set()
        self._since = self._begun = 0.0  # when tasks began to wait; when this group's first look was

    def look(self, found: Snapshot, workers: int, now: float) -> Load:
        """The load of the group after one more look. `workers`: how many it has. `now`: seconds of the monotonic clock."""
        one, samples = self._sample(found, now), self._samples
        if not samples:
            self._begun = now
        if not one.waiting or not samples or not samples[-1].waiting:
            self._since = now
        samples.append(one)
        while len(samples) > 2 and samples[1].at <= now - WINDOW:
            samples.popleft()
        (ended, _, _, *waits), _ = _counted(samples)
        first, span = samples[0], now - samples[0].at
        come = ended + one.waiting + one.running - first.waiting - first.running
        return Load(
            workers=workers,
            slots=one.slots,
            running=sum(sample.running for sample in samples) / len(samples),
            waiting=one.waiting,
            oldest=one.oldest,
            late=percentile(waits),
            arriving=max(0.0, come / span) if span else 0.0,
            rate=_rate(samples),
            lasting=now - self._since,
        )

    def wish(self, load: Load, now: float) -> int:
        """How many workers the group is to have. Remembers what it needs now."""
        self._needs.append((now, needed(load, self.target)))
        while self._needs[0][0] < now - self.cooldown:
            self._needs.popleft()
        known = now - self._begun >= self.cooldown
        return wish(load, self.target, self.group.scale, [need for _, need in self._needs] if known else [])

    def _sample(self, found: Snapshot, now: float) -> Sample:
        nodes = nodes_of(self.group, found)
        answers = {node: found.workers[node] for node in nodes if node in found.workers}
        # A worker that is silent, and was not before, is busy: one on solo answers between tasks alone.
        busy = len(self._answered.intersection(nodes) - answers.keys())
        self._answered |= answers.keys()
        slots = max((one["concurrency"] or 1 for one in answers.values()), default=self.group.concurrency or 1)
        # Tasks of a paused queue wait for somebody, not for a worker.
        every = found.broker.queues if isinstance(found.broker, Server) else []
        queues = [one for one in every if one.name in self.group.queues and not one.paused]
        return Sample(
            now,
            slots,
            running=sum(one["active"] or 0 for one in answers.values()) + busy * slots,
            waiting=sum(one.waiting for one in queues) + sum(one["reserved"] or 0 for one in answers.values()),
            oldest=max((one.oldest or 0.0 for one in queues), default=0.0),
            workers={node: counts(one) for node, one in answers.items()},
        )


def nodes_of(group: Group, found: Snapshot) -> list[str]:
    """The names of a group's workers whose processes run."""
    return [one.node for one in found.members if one.node and one.running and one.group == group.name]


def idle_ones(group: Group, found: Snapshot) -> list[str]:
    """The workers of a group that answer, and neither run nor hold a task. Those that consume nothing come first."""
    answers = {node: found.workers[node] for node in nodes_of(group, found) if node in found.workers}
    free = [node for node, one in answers.items() if one["active"] == 0 and one["reserved"] == 0]
    return sorted(free, key=lambda node: bool(answers[node]["consuming"]))


class Balancer:
    """Gives the groups of a stack the workers that they need. `retire`: takes a worker's queues away; returns whether it holds
    no task then, and gives them back otherwise (celery_kit/operate/look/idle.py). `cooldown`: seconds. `taken`: the file that
    names the workers that are being stopped, for the next process if this one is killed meanwhile.
    """

    def __init__(self, scaling: Scaling, retire: Retire, cooldown: float, taken: Path) -> None:
        self.scaling, self.retire, self.cooldown, self.taken = scaling, retire, cooldown, taken
        self._watches: dict[str, Watch] = {}
        self._faults: dict[str, str] = {}  # by group, the last one that was said

    def round(self, found: Snapshot, now: float) -> Iterator[str]:
        """Look at each group, and act. Yields a line for each thing that was done, and for each new fault."""
        fault = f"the broker {found.broker}" if isinstance(found.broker, str) else found.unasked
        fault = fault or ("" if found.groups else "no worker of a group runs")
        yield from self._new_fault("", fault)
        if fault:
            self._watches.clear()  # nothing is known of the time without an answer
        for group in () if fault else found.groups or ():
            fault = ""
            try:
                yield from self._balance(group, found, now)
            except NotScaledError as error:
                fault = f"{group.name}: {error}"
            yield from self._new_fault(group.name, fault)

    def _new_fault(self, name: str, fault: str) -> Iterator[str]:
        if fault and fault != self._faults.get(name):
            yield fault
        self._faults[name] = fault

    def _balance(self, group: Group, found: Snapshot, now: float) -> Iterator[str]:
        if left := self._left(group, found):
            what = "is stopped" if self._stops(*left) else "has its queues again: it is busy"
            yield f"{group.name}: {left[0]} was being stopped, and {what}"
            return
        number, watch = self.scaling.count(group), self._watches.get(group.name)
        if watch is None or watch.group != group:
            watch = self._watches[group.name] = Watch(group, self.cooldown)
            least, most = group.scale
            yield f"{group.name} has {number} of {least} to {most} workers; a task may wait {watch.target:g} s"
        load = watch.look(found, number, now)
        wanted = watch.wish(load, now)
        if wanted > number:
            self.scaling.more(group, wanted - number)
            yield f"{group.name}: {number} -> {wanted} workers: {_words(load, watch.target)}"
        elif wanted < number:
            for node in idle_ones(group, found):
                if self._stops(node, found.workers[node]["consuming"] or []):
                    yield f"{group.name}: {number} -> {number - 1} workers: {node} was idle, and is stopped"
                    break

    def _left(self, group: Group, found: Snapshot) -> tuple[str, list[str]] | None:
        """The worker of a group that answers, and whose stop was begun and not ended; and the queues that it had."""
        answer = found.workers.keys() & nodes_of(group, found)
        return next((one for one in self._noted().items() if one[0] in answer), None)

    def _noted(self) -> dict[str, list[str]]:
        """The workers whose stop was begun and not ended, and the queues that they had."""
        try:
            return dict(json.loads(self.taken.read_text()))
        except (OSError, ValueError):
            return {}

    def _stops(self, node: str, queues: list[str]) -> bool:
        """Stop a worker if it holds no task. Returns whether it is stopped. After an error, the next round tries again."""
        noted = {**self._noted(), node: queues}
        self.taken.write_text(json.dumps(noted))
        try:
            done = self.retire(node, queues)
        except Exception as error:  # any error of a broker's client, or of the engine's
            raise NotScaledError(f"{node} could not be asked: {last_line(str(error))}") from error
        if done:
            self.scaling.end(node)
        del noted[node]
        self.taken.write_text(json.dumps(noted))
        return done


def _words(load: Load, target: float) -> str:
    rate = f"one does {load.rate:.3g}/s" if load.rate else "none has ended yet"
    return f"tasks wait {load.wait:.1f} s of {target:g} s; {load.waiting} wait, {load.arriving:.3g}/s arrive, {rate}"


def run(stack: Stack, scaling: Scaling, take: Callable[[], Snapshot], every: float, cooldown: float) -> NoReturn:
    """Balance a stack until Ctrl-C, with a look every `every` seconds. `scaling`: starts and stops its workers. `take`: takes a
    snapshot. Refuses a second process, and a stack in which no group may have more workers than its min.
    """
    inspected = stack.inspected()
    if not any(least < most for least, most in (one.scale for one in stack.groups(inspected))):
        refuse("no group of the running stack has a max above its min; such as scale = {min = 1, max = 4} (docs/groups.md)")
    codebase = stack.codebase(inspected)

    def retire(node: str, queues: Sequence[str]) -> bool:
        if not codebase:
            return idle.retire(node, queues)
        words = ("operator", "celery_kit.operate.look.idle", node, "--", *queues)
        return stack.python(*words, capture_output=True, timeout=LOOK_SECONDS).returncode == 0

    balancer = Balancer(scaling, retire, cooldown, ROOT / ".kit/balance.taken")
    with _lock():
        while True:
            for line in _round(balancer, take):
                print(f"{datetime.now():%H:%M:%S} {line}", flush=True)
            time.sleep(every)


def _round(balancer: Balancer, take: Callable[[], Snapshot]) -> Iterator[str]:
    """One round. What the engine, or a command of its client, does not answer, is said, and the next round tries again."""
    try:
        found, why = unless_refused(take)
        if found is None:
            yield why
        else:
            yield from balancer.round(found, time.monotonic())
    except EngineSilentError as error:
        yield str(error)


def _lock() -> IO[str]:
    file = ROOT / ".kit/balance.lock"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = Path(file).open("a")  # noqa: SIM115  # held as long as the process runs
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        refuse("'make balance' runs already for this checkout")
    return held
