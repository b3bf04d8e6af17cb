"""A paused queue in all that looks at queues: status, doctor, metrics, balance. And what of `make pause` is refused."""

import json
from typing import Any

import pytest

from celery_kit.base.facts import Member, Queue, Server, vitals_of
from celery_kit.operate import tasks
from celery_kit.operate.balance import Watch
from celery_kit.operate.cli import cli
from celery_kit.operate.groups import Group, faults
from celery_kit.operate.look import doctor, pause
from celery_kit.operate.look.doctor import STACK, Scene
from celery_kit.operate.look.exporter import metrics
from celery_kit.operate.look.status import Snapshot, document, lines, packed, unpacked

NODE = "load@x"
LOAD = Group("load", queues=("load",), scale=(1, 4), target_wait=5)


def found(paused: bool, *queues: Queue) -> Snapshot:
    """Ten tasks wait in the one queue of a group, whose worker consumes it unless it is paused."""
    every = [Queue("load", 10, 0, None, 900.0, paused), *queues]
    report = {"consuming": [] if paused else ["load"], "paused": ["load"] if paused else [], "active": 0, "reserved": 0}
    answer = vitals_of({**report, "clock": None, "concurrency": 1, "measures": []})
    return Snapshot(
        Server("Broker", "1", every),
        None,
        {NODE: answer},
        [Member("worker", "running", True, NODE, {}, "load")],
        groups=(LOAD,),
    )


def row(name: str, snapshot: Snapshot) -> str:
    return next(line for line in lines(snapshot) if line.startswith(f"{name} "))


def test_status_says_that_a_queue_its_worker_and_its_group_are_paused() -> None:
    stopped, runs = unpacked(packed(found(True))), found(False)
    assert row("queue", stopped).split()[-1] == "state" and row("load", stopped).split()[-1] == "paused"
    assert row(NODE, stopped).split()[3] == "paused"
    groups = lines(stopped)[lines(stopped).index(next(one for one in lines(stopped) if one.startswith("group "))) + 1]
    assert groups.split()[:3] == ["load", "prefork", "paused"]
    assert "paused" not in "".join(lines(runs))
    assert [one["paused"] for one in document(stopped)["groups"]] == [True]  # type: ignore[attr-defined]


def test_a_worker_that_consumes_nothing_for_another_reason_is_still_shown() -> None:
    broken = found(False)
    broken.workers[NODE]["consuming"] = []
    assert "ALIVE, CONSUMES NOTHING" in row(NODE, broken)


@pytest.mark.parametrize(("paused", "number"), [(True, 0), (False, 1)])
def test_doctor_notes_a_paused_queue_and_finds_no_fault(
    paused: bool, number: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not running, what waits there longer than its group's target is one."""
    snapshot = found(paused)
    scene = Scene(members=snapshot.members, look=lambda *_: snapshot)
    assert not [what for check in STACK for what, _ in check(scene) if "load" in what and "answer" not in what]
    late = [what for what, _ in faults(scene.folder, [LOAD], snapshot.members, scene.broker.queues) if "has waited" in what]  # type: ignore[union-attr]
    assert len(late) == number
    monkeypatch.setattr(doctor, "MACHINE", ())
    assert doctor.show(scene) == 0
    said = capsys.readouterr().out
    assert ("queue load is paused; 10 tasks wait in it" in said) == paused == ("make resume QUEUE=load" in said)
    doctor.show(scene, as_json=True)
    assert [one["fix"] for one in json.loads(capsys.readouterr().out)["notes"]] == ["make resume QUEUE=load"] * paused


def test_the_exporter_serves_which_queues_are_paused_and_counts_their_workers() -> None:
    def value(snapshot: Snapshot, name: str) -> list[float]:
        return [one.value for metric in metrics(snapshot) for one in metric.samples if one.name == f"celery_kit_{name}"]

    assert value(found(True, Queue("other", 0)), "queue_paused") == [1.0]  # of the other nothing is known
    assert value(found(False), "queue_paused") == [0.0]
    assert value(found(True), "workers") == value(found(False), "workers") == [1.0]


@pytest.mark.parametrize(("paused", "most"), [(True, 1), (False, 4)])
def test_balance_starts_no_worker_for_a_paused_group(paused: bool, most: int) -> None:
    watch, wishes = Watch(LOAD, 60), []
    for second in range(0, 60, 5):
        wishes.append(watch.wish(watch.look(found(paused), 1, float(second)), float(second)))
    assert max(wishes) == most


def test_what_is_paused_is_said_in_words() -> None:
    state = pause.State("mail", True, True, 3)
    said = [*pause.lines("pause", pause.Done([state], [pause.Noticed("a@x", ["mail"], 2), pause.Noticed("b@x", [], 1)]))]
    assert said[0] == "mail is paused: 3 tasks wait, until 'make resume QUEUE=mail'"
    assert said[1] == "2 workers have noticed; they go on with the 3 tasks that they hold"
    overtaken = [*pause.lines("resume", pause.Done([state], []))]
    assert "somebody else did the opposite" in overtaken[0] and overtaken[1].startswith("mail is paused")


class Stack:
    """A stack of two groups that share a queue."""

    def inspected(self) -> list[Any]:
        return []

    def groups(self, _: object) -> list[Group]:
        return [LOAD, Group("both", queues=("load", "mail"))]

    def python(self, *argv: str) -> Any:
        self.argv = argv
        raise SystemExit(0)


@pytest.fixture
def stack(monkeypatch: pytest.MonkeyPatch) -> Stack:
    one = Stack()
    monkeypatch.setattr(tasks, "running_stack", lambda: one)
    return one


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([], "give QUEUE or GROUP"),
        (["--queue=mail", "--group=load"], "give QUEUE or GROUP"),
        (["--queue= , "], "names no queue"),
        (["--group=nix"], "GROUP=nix is not known; allowed: load, both"),
    ],
)
@pytest.mark.parametrize("word", ["pause", "resume"])
def test_what_names_no_queue_is_refused(
    stack: Stack, given: list[str], says: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        cli([word, *given], standalone_mode=False)
    assert refused.value.code == 2
    said = capsys.readouterr()
    assert says in said.err and said.err.count("\n") == 1 and not said.out


def test_a_group_stands_for_its_queues_and_who_shares_them_is_named(stack: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["pause", "--group=load"], standalone_mode=False)
    assert stack.argv == ("operator", "celery_kit.operate.look.pause", "--known=load,mail", "--", "pause", "load")
    assert capsys.readouterr().err == "group both consumes load too: it stops there as well\n"
