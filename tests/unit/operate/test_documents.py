"""JSON=1: every command that shows something has a document, which has the fields that docs/json.md names."""

import json
import os
from typing import Any

import pytest

from celery_kit.base.facts import Held, Member, Queue, Server, vitals_of
from celery_kit.operate.cli import cli
from celery_kit.operate.documents import DOCUMENTS, SAME, WITHOUT
from celery_kit.operate.groups import Group
from celery_kit.operate.look import doctor, status
from celery_kit.operate.look.doctor import Scene
from celery_kit.operate.look.status import Snapshot
from celery_kit.operate.stacks.swarm import Service
from celery_kit.results.outcome import Outcome


def test_every_command_has_a_document_or_a_reason() -> None:
    assert {*cli.commands} == {*DOCUMENTS, *SAME, *WITHOUT}
    assert len(cli.commands) == len(DOCUMENTS) + len(SAME) + len(WITHOUT)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_the_commands_with_a_document_take_json_by_option_and_by_environment(name: str) -> None:
    taken = [one for one in cli.commands[name].params if "--json" in one.opts]
    assert [one.envvar for one in taken] == ["JSON"] * (name in {*DOCUMENTS, *SAME})


SEEN = Snapshot(
    Server("Broker", "1", [Queue("mail", 1)], held=[Held("a@x")], url="there"),
    "does not answer: gone",
    {"a@x": vitals_of({"consuming": ["mail"], "tasks": ["mail.send"]})},
    [Member("worker", "running", True, "a@x", {}, "mail"), Member("beat", "running", True)],
    results_url="elsewhere",
    groups=(Group("mail", queues=("mail",)),),
)


def test_status_prints_what_the_page_says() -> None:
    found: Any = json.loads(json.dumps(status.document(SEEN)))
    assert {*found} == {*DOCUMENTS["status"]}
    told = DOCUMENTS["status"]
    for name in ("queues", "held", "workers"):
        assert all(field in told[name] for one in found[name] for field in one), name
    assert all(field in told["broker"] for field in (*found["broker"], *found["results"]))
    assert (found["broker"]["answers"], found["results"]["answers"], found["results"]["why"]) == (True, False, "gone")


def test_doctor_prints_what_the_page_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MACHINE", (lambda _: iter([("it is broken", "mend it")]),))
    assert doctor.show(Scene(stack=False), as_json=True) == 1
    found = json.loads(capsys.readouterr().out)
    assert {*found} == {*DOCUMENTS["doctor"]}
    assert found["faults"] == [{"what": "it is broken", "fix": "mend it"}]


def test_a_result_and_a_service_have_the_fields_of_the_page() -> None:
    assert {*vars(Outcome("", ""))} == {*DOCUMENTS["result"]}
    assert all(field in DOCUMENTS["stack"]["services"] for field in Service._fields)


def test_a_refusal_is_one_line_on_standard_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "JSON", "1")
    with pytest.raises(SystemExit) as refused:
        cli(["result", "--id=1", "--watch"], standalone_mode=False)
    said = capsys.readouterr()
    assert (refused.value.code, said.out) == (2, "") and said.err.count("\n") == 1
