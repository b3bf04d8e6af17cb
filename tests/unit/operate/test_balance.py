"""The rule of `make balance`: figures in, a number of workers out; and what comes of it on groups that are simulated."""

import json
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from celery_kit.base.facts import BOUNDS, Member, Queue, Server, Vitals, vitals_of
from celery_kit.base.refusals import unless_refused
from celery_kit.operate import balance
from celery_kit.operate.balance import Balancer, Load, idle_ones, needed, percentile, wish
from celery_kit.operate.groups import Group
from celery_kit.operate.look import idle
from celery_kit.operate.look.status import Snapshot
from celery_kit.operate.stacks import scaling
from celery_kit.operate.stacks.scaling import NotScaledError

#: By what is the case: the load, the seconds of the target, the workers that are needed.
NEEDS: dict[str, tuple[Load, float, int]] = {
    "nothing to do": (Load(3), 5, 0),
    "a third of the places in use": (Load(3, slots=10, running=9), 5, 2),
    "as many in use as fewer workers have": (Load(3, slots=10, running=20), 5, 3),
    "all in use, and nobody waits": (Load(3, slots=10, running=30), 5, 3),
    "tasks wait less than the target": (Load(1, slots=2, running=2, waiting=20, rate=10), 5, 1),
    "they would wait longer": (Load(1, slots=2, running=2, waiting=60, arriving=10, rate=10), 5, 3),
    "twice as many as one does arrive": (Load(1, slots=2, running=2, waiting=51, arriving=20, rate=10), 5, 4),
    "they have waited longer, and are done in time": (
        Load(4, slots=2, running=8, waiting=20, late=9, arriving=30, rate=10),
        5,
        4,
    ),
    "the next one has waited longer": (Load(1, slots=2, running=2, waiting=10, oldest=6, arriving=11, rate=10), 5, 2),
    "the last ones have waited longer, and none waits now": (Load(2, slots=2, running=1, late=9, arriving=1, rate=10), 5, 2),
    "long tasks: a place for each is enough": (Load(1, slots=1, running=1, waiting=3, arriving=0.1, rate=0.01), 5, 4),
    "none has ended yet, and they wait shorter": (Load(1, slots=1, running=1, waiting=3, lasting=4), 5, 1),
    "none has ended yet, and they wait longer": (Load(1, slots=1, running=1, waiting=3, lasting=6), 5, 4),
    "no worker is there": (Load(0, slots=1, waiting=3, lasting=6), 5, 3),
}


@pytest.mark.parametrize("case", NEEDS)
def test_how_many_workers_a_load_needs(case: str) -> None:
    load, target, number = NEEDS[case]
    assert needed(load, target) == number


LOADED = Load(2, slots=2, running=4, waiting=1_000, arriving=100, rate=10)
IDLE = Load(3, slots=2)


@pytest.mark.parametrize(
    ("load", "scale", "recent", "number"),
    [
        (LOADED, (1, 4), [2, 2, 2], 4),  # at once, up to max
        (LOADED, (1, 100), [], 30),
        (IDLE, (1, 4), [], 3),  # not known for as long as the cooldown
        (IDLE, (1, 4), [0, 3, 0], 3),  # they were needed within it
        (IDLE, (1, 4), [0, 2, 0], 2),
        (IDLE, (1, 4), [0, 0, 0], 1),  # down to min
        (IDLE, (2, 2), [0, 0, 0], 2),  # more than max, whoever started them
        (Load(1, slots=2), (2, 4), [], 2),  # one has died
        (Load(4, slots=2, running=8), (1, 4), [4, 4, 4], 4),
    ],
)
def test_more_workers_come_at_once_and_fewer_after_the_cooldown(
    load: Load, scale: tuple[int, int], recent: list[int], number: int
) -> None:
    assert wish(load, 5, scale, recent) == number


def buckets(**numbers: float) -> list[float]:
    return [numbers.get(f"b{place}", 0.0) for place in range(len(BOUNDS) + 1)]


@pytest.mark.parametrize(
    ("waits", "seconds"),
    [
        (buckets(), 0.0),
        (buckets(b0=100), 0.0095),
        (buckets(b5=100), 0.975),  # from 0.5 to 1 s
        (buckets(b0=90, b7=10), 3.75),  # half of those from 2.5 to 5 s
        (buckets(b0=99, b13=1), 0.0096),
        (buckets(b13=1), 1_800.0),
    ],
)
def test_the_wait_of_95_of_100_tasks(waits: list[float], seconds: float) -> None:
    assert percentile(waits) == pytest.approx(seconds, rel=0.02)


def answer(active: int = 0, reserved: int = 0, consuming: tuple[str, ...] = ("mail",)) -> Vitals:
    return vitals_of({"active": active, "reserved": reserved, "consuming": [*consuming], "concurrency": 2})


def test_an_idle_worker_answers_and_neither_runs_nor_holds_a_task() -> None:
    """One that does not answer may be busy, and one of another group is not meant."""
    group, nodes = Group("mail", queues=("mail",)), ("busy", "holds", "idle", "silent", "retired", "exited")
    members = [Member("worker", "", name != "exited", name, group="mail") for name in nodes]
    members += [Member("worker", "", True, "other", group="images"), Member("beat", "", True)]
    answers = {"busy": answer(1), "holds": answer(0, 1), "other": answer(), "exited": answer(), "idle": answer()}
    answers |= {"retired": answer(consuming=()), "without the kit": vitals_of({"ok": "pong"})}
    assert idle_ones(group, Snapshot(Server("Broker", "1"), None, answers, members)) == ["retired", "idle"]


@dataclass
class Worker:
    """A worker that is simulated: when it consumes, the ends of the tasks that it runs, and what it has counted."""

    begins: float
    ends: list[float] = field(default_factory=list)
    ended: int = 0
    waited: list[float] = field(default_factory=lambda: [0.0] * (len(BOUNDS) + 2))


class Simulated:
    """A group whose tasks take `seconds` each, and whose workers take START seconds to start. `told`: what a task is said to
    have taken, without what a worker does before and after it.
    """

    START = 6.0

    def __init__(self, group: Group, slots: int, seconds: float, told: float) -> None:
        self.group, self.slots, self.seconds, self.told = group, slots, seconds, told
        self.now, self.made, self.owed = 0.0, 0, 0.0
        self.workers: dict[str, Worker] = {}
        self.queue: deque[float] = deque()
        self.waits: list[tuple[float, float]] = []
        self.more(group, group.scale[0])

    def count(self, group: Group) -> int:
        return len(self.workers)

    def more(self, group: Group, number: int) -> None:
        for _ in range(number):
            self.made += 1
            self.workers[f"mail@{self.made}"] = Worker(self.now + self.START * (self.made > group.scale[0]))
        assert len(self.workers) <= group.scale[1]

    def retire(self, node: str, queues: Sequence[str]) -> bool:
        return not self.workers[node].ends

    def end(self, worker: str) -> None:
        assert not self.workers.pop(worker).ends, "it was busy"

    def step(self, rate: float, tick: float = 0.1) -> None:
        """Let a tenth of a second pass in which `rate` tasks/s arrive."""
        self.now += tick
        self.owed += rate * tick
        while self.owed >= 1:
            self.owed -= 1
            self.queue.append(self.now)
        for one in self.workers.values():
            one.ended += sum(end <= self.now for end in one.ends)
            one.ends = [end for end in one.ends if end > self.now]
            while self.queue and len(one.ends) < self.slots and one.begins <= self.now:
                waited = self.now - self.queue.popleft()
                self.waits.append((self.now, waited))
                one.waited[bisect_left(BOUNDS, waited)] += 1
                one.ends.append(self.now + self.seconds)

    def snapshot(self) -> Snapshot:
        """As the broker and the workers report it."""
        answers = {}
        for node, one in self.workers.items():
            ran = [0.0] * (len(BOUNDS) + 2)
            ran[0], ran[-1] = float(one.ended), one.ended * self.told
            measures = {"task": "t", "queue": "mail", "waited": one.waited, "ran": ran, "ended": {"succeeded": one.ended}}
            given = {"active": len(one.ends), "reserved": 0, "concurrency": self.slots, "consuming": ["mail"]}
            if one.begins <= self.now:
                answers[node] = vitals_of({**given, "measures": [{**measures, "early": 0}]})
        members = [Member("worker", "", True, node, group="mail") for node in self.workers]
        broker = Server("Broker", "1", [Queue("mail", len(self.queue))])
        return Snapshot(broker, None, answers, members, groups=(self.group,))


#: The places of a worker, the seconds of a task, what is told of them, the target, and the tasks/s before and after the step.
STEPS = {
    "quick tasks": (2, 0.05, 0.05, 1.0, 14.0, 140.0),
    "tasks that are less than what they cost": (2, 0.05, 0.001, 1.0, 14.0, 140.0),
    "tasks of half a second": (2, 0.5, 0.5, 5.0, 2.0, 20.0),
    "many places": (100, 2.0, 2.0, 5.0, 15.0, 150.0),
    "one place": (1, 1.0, 1.0, 10.0, 0.5, 5.0),
    "tasks longer than the target": (1, 20.0, 20.0, 10.0, 0.03, 0.3),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_load_step_is_followed_up_and_down(step: str, tmp_path: Path) -> None:
    """Ten times the tasks: within 60 s those that begin have waited less than the target, and later there is one worker again.

    No busy worker is stopped, which the simulation asserts, and there is no back and forth.
    """
    slots, seconds, told, target, before, after = STEPS[step]
    group = Group("mail", queues=("mail",), scale=(1, 10), target_wait=target)
    simulated = Simulated(group, slots, seconds, told)
    balancer, numbers = Balancer(simulated, simulated.retire, 60, tmp_path / "taken"), list[int]()

    def pass_time(duration: float, rate: float) -> None:
        for tick in range(int(duration * 10)):
            simulated.step(rate)
            if tick % 50 == 0:
                list(balancer.round(simulated.snapshot(), simulated.now))
                numbers.append(len(simulated.workers))

    pass_time(120, before)
    assert {*numbers} == {1}
    numbers.clear()
    stepped = simulated.now
    pass_time(120, after)
    late = sorted(waited for begun, waited in simulated.waits if begun > stepped + 60)
    assert late[int(0.95 * len(late))] <= target
    assert max(numbers) > 3
    numbers.clear()
    pass_time(60 + 20 * seconds, after)
    assert len(set(numbers)) <= 2, "as many as needed, and no back and forth"
    numbers.clear()
    pass_time(300 + 10 * seconds, 0)
    assert numbers[-1] == 1
    assert numbers == sorted(numbers, reverse=True)


def test_long_tasks_are_known_from_before(tmp_path: Path) -> None:
    """None has ended for a while, and what waits now would wait too long: nobody has to wait for that first."""
    group = Group("mail", queues=("mail",), scale=(1, 10), target_wait=60)
    simulated = Simulated(group, 1, 30, 30)
    balancer = Balancer(simulated, simulated.retire, 60, tmp_path / "taken")
    for tick in range(3_000):
        simulated.step(0.03 if tick < 1_000 else 0)
        if tick % 50 == 0:
            list(balancer.round(simulated.snapshot(), simulated.now))
    assert len(simulated.workers) == 1
    simulated.queue.extend([simulated.now] * 100)
    simulated.step(0)
    list(balancer.round(simulated.snapshot(), simulated.now))
    assert len(simulated.workers) == 10


class Fixed:
    """A stack whose workers cannot be started."""

    def __init__(self, number: int) -> None:
        self.number = number

    def count(self, group: Group) -> int:
        return self.number

    def more(self, group: Group, number: int) -> None:
        raise NotScaledError("no memory is left")

    def end(self, worker: str) -> None:
        raise AssertionError("nothing is idle")


def test_a_fault_is_said_once_until_it_is_another(tmp_path: Path) -> None:
    group = Group("mail", queues=("mail",), scale=(2, 4))
    found = Snapshot(Server("Broker", "1"), None, {}, [Member("worker", "", True, "a", group="mail")], groups=(group,))
    balancer = Balancer(Fixed(1), lambda *_: False, 60, tmp_path / "taken")
    away = Snapshot("does not answer: refused", None, {}, [], groups=(group,))
    said = [list(balancer.round(one, now)) for now, one in enumerate([found, found, away, away, found])]
    assert said == [
        ["mail has 1 of 2 to 4 workers; a task may wait 10 s", "mail: no memory is left"],
        [],
        ["the broker does not answer: refused"],
        [],
        ["mail has 1 of 2 to 4 workers; a task may wait 10 s"],  # it looks at the group from the start
    ]


class Stack:
    """A running stack, with its groups."""

    def __init__(self, *groups: Group) -> None:
        self.given = [*groups]

    def inspected(self) -> list[object]:
        return []

    def groups(self, _: object) -> list[Group]:
        return self.given

    def codebase(self, _: object) -> None:
        return None


def test_what_cannot_be_balanced_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stack in which no group may have more workers, or that another process balances."""

    def refusal(*groups: Group) -> str:
        stack: Any = Stack(*groups)
        return unless_refused(lambda: balance.run(stack, Fixed(1), lambda: Snapshot("", None, {}, []), 5, 60))[1]

    monkeypatch.setattr(balance, "ROOT", tmp_path)
    assert refusal().startswith("no group of the running stack has a max above its min; such as scale = {min = 1, max = 4}")
    assert refusal(Group("mail", scale=(2, 2))).startswith("no group of the running stack has a max above its min")
    with balance._lock():
        assert refusal(Group("mail", scale=(1, 2))) == "'make balance' runs already for this checkout"


def test_a_worker_that_does_not_stop_consuming_is_not_stopped(tmp_path: Path) -> None:
    """It was sent a task at this moment, and has its queues again."""
    group = Group("mail", queues=("mail",), scale=(1, 2))
    members = [Member("worker", "", True, node, group="mail") for node in ("a", "b", "c")]
    found = Snapshot(Server("Broker", "1"), None, {node: answer() for node in "abc"}, members, groups=(group,))
    asked: list[str] = []

    def retire(node: str, queues: Sequence[str]) -> bool:
        assert queues == ["mail"]
        asked.append(node)
        return False

    assert len(list(Balancer(Fixed(3), retire, 60, tmp_path / "taken").round(found, 0))) == 1, (
        "it has only said which group there is"
    )
    assert asked == ["a", "b", "c"]

    def lost(node: str, queues: Sequence[str]) -> bool:
        raise OSError("the connection is lost")

    assert list(Balancer(Fixed(3), lost, 60, tmp_path / "other").round(found, 0))[1:] == [
        "mail: a could not be asked: the connection is lost"
    ]


class Killed(BaseException):
    """As SIGKILL ends a process: nothing of it runs any more."""


@pytest.mark.parametrize("busy", [False, True])
def test_who_is_killed_while_a_worker_is_stopped_leaves_it_to_the_next(tmp_path: Path, busy: bool) -> None:
    """Killed after it has taken the worker's queues. The next one stops it, or gives them back if it has got a task."""
    group = Group("mail", queues=("mail", "news"), scale=(1, 2))
    members = [Member("worker", "", True, node, group="mail") for node in "ab"]

    class Two(Fixed):
        ended: list[str] = []  # noqa: RUF012

        def end(self, worker: str) -> None:
            self.ended.append(worker)

    def round_of(retire: balance.Retire, consuming: tuple[str, ...], now: float) -> list[str]:
        answers = {"a": answer(consuming=consuming), "b": answer(1)}
        found = Snapshot(Server("Broker", "1"), None, answers, members, groups=(group,))
        return list(Balancer(Two(2), retire, 0, tmp_path / "taken").round(found, now))

    def killed(node: str, queues: Sequence[str]) -> bool:
        raise Killed

    with pytest.raises(Killed):
        round_of(killed, ("mail", "news"), 1)
    asked: list[tuple[str, Sequence[str]]] = []

    def retire(node: str, queues: Sequence[str]) -> bool:
        asked.append((node, queues))
        return not busy

    said = round_of(retire, (), 2)
    assert asked == [("a", ["mail", "news"])]
    assert said == [f"mail: a was being stopped, and {'has its queues again: it is busy' if busy else 'is stopped'}"]
    assert Two.ended == ([] if busy else ["a"])
    assert round_of(lambda *_: False, ("mail", "news"), 3) == ["mail has 2 of 1 to 2 workers; a task may wait 10 s"]


def test_what_is_noted_of_a_stack_only_its_user_can_read(tmp_path: Path) -> None:
    """It has the values of .env. A stack of another broker replaces it."""
    config = {"services": {"worker-mail": {"labels": {"celery-kit.env_file": ""}}, "broker": {}}}
    with patch.object(scaling, "ROOT", tmp_path):
        scaling.note("shop", "compose.one.yaml", {"services": {}})
        scaling.note("shop", "compose.two.yaml", config)
    (file,) = (tmp_path / ".kit/stacks/shop").iterdir()
    assert file.name == "compose.two.yaml" and file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_text())["services"]["worker-mail"]["env_file"] == ["/dev/null"]


class Remote:
    """A worker's remote control, in place of a real one: a message that arrives at this moment cannot be had at will.

    `holds`: what it holds at each look.
    """

    def __init__(self, *holds: list[str] | None) -> None:
        self.holds, self.consuming = deque(holds), ["mail", "news"]
        self.control = self

    def inspect(self, nodes: list[str], timeout: float) -> "Remote":
        assert nodes == ["mail@here"] and timeout
        return self

    def active(self) -> dict[str, list[str]] | None:
        now = self.holds.popleft()
        return None if now is None else {"mail@here": now}

    def reserved(self) -> dict[str, list[str]]:
        return {"mail@here": []}

    scheduled = reserved

    def cancel_consumer(self, queue: str, **_: object) -> None:
        self.consuming.remove(queue)

    def add_consumer(self, queue: str, **_: object) -> None:
        if queue not in self.consuming:  # as Celery does
            self.consuming.append(queue)


@pytest.mark.parametrize(
    ("holds", "retired"),
    [
        ([[], [], []], True),
        ([["a task"]], False),
        ([[], ["a task"]], False),
        ([[], [], ["a task"]], False),
        ([[], [], None], False),  # it does not answer any more
        ([None], False),
    ],
)
def test_a_worker_that_holds_a_task_has_its_queues(
    holds: list[list[str] | None], retired: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = Remote(*holds)
    monkeypatch.setattr(idle, "app", remote)
    monkeypatch.setattr(idle, "PAUSE", 0)
    assert idle.retire("mail@here", ["mail", "news"]) is retired
    assert remote.consuming == ([] if retired else ["mail", "news"])


def test_a_busy_worker_has_the_queues_that_an_earlier_try_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """That try was killed after the first of two queues, and the worker has got a task from the other one."""
    remote = Remote(["a task"])
    remote.consuming = ["news"]
    monkeypatch.setattr(idle, "app", remote)
    assert not idle.retire("mail@here", ["mail", "news"])
    assert sorted(remote.consuming) == ["mail", "news"]


def test_a_worker_has_its_queues_when_retiring_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    remote = Remote([])  # the second look raises
    monkeypatch.setattr(idle, "app", remote)
    with pytest.raises(IndexError):
        idle.retire("mail@here", ["mail", "news"])
    assert remote.consuming == ["mail", "news"]
