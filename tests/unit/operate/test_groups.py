"""Worker groups: what the table may say, what is refused, and what each reader makes of it."""

import json
import os
import re
import tomllib
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import jsonschema
import pytest
import yaml

from celery_kit.base.facts import Member, Queue, Server, vitals_of
from celery_kit.base.refusals import unless_refused
from celery_kit.base.target import ROOT
from celery_kit.operate import groups
from celery_kit.operate.groups import FIELDS, SCHEMA, Group, Table, faults, notes, read, schema
from celery_kit.operate.look.status import Snapshot, lines, packed, unpacked
from celery_kit.operate.stacks import compose, local, services
from celery_kit.operate.stacks.embedded import _commands, environment
from celery_kit.pools.table import POOLS

(EXAMPLE,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs/groups.md").read_text(), re.MULTILINE | re.DOTALL)
MAIL = Group("mail", "gevent", ("mail",), (1, 4), 200, 5, 60)
IMAGES = Group("images", "prefork", ("images",), concurrency=2, time_limit=900, memory="2g", cpus=2, max_tasks_per_child=100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "workers.toml").write_text(EXAMPLE)
    return tmp_path


def refused(folder: Path, text: str | bytes) -> str:
    """The line that a table is refused with, without the file's name; empty if it is taken."""
    (folder / "workers.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    _, why = unless_refused(lambda: read(folder, "prefork", 1))
    assert "\n" not in why and len(why) < 400
    return why.replace(f"{folder}/", "")


def test_without_a_file_there_are_no_groups(tmp_path: Path) -> None:
    assert read(tmp_path, "prefork", 1).groups == ()


def test_the_example_of_the_page_is_read(folder: Path) -> None:
    """What a group leaves out is what was typed, or None: the stack's own value holds."""
    default, mail, images = read(folder, "threads", 3).groups
    assert (default, mail, images) == (Group("default", "threads", ("celery",), (3, 3)), MAIL, replaced(IMAGES, scale=(3, 3)))


def replaced(group: Group, **changes: Any) -> Group:
    return Group(**{**vars(group), **changes})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"\xff", "workers.toml is not TOML: 'utf-8' codec can't decode"),
        ("[groups.a", "workers.toml is not TOML: "),
        (f"a = {'[' * 10_000}", "workers.toml is not TOML: "),
        ("", "workers.toml has no group; one is a table such as [groups.mail], with at least its queues"),
        ("groups = 3", "workers.toml has no group"),
        ("[groups]", "workers.toml has no group"),
        ("[group.a]", 'workers.toml: "group" is not known; allowed: groups'),
        ("[groups]\na = 1", "workers.toml: groups.a = 1 is not allowed; a table, with at least its queues"),
        ("[groups.A]", 'workers.toml: groups."A" is not allowed; small letters, digits and -, a letter first, 30 at most'),
        (f"[groups.{'a' * 31}]", "is not allowed; small letters"),
        ('[groups."a\\nb"]', 'groups."a\\nb" is not allowed'),
        ("[groups.a-]", "is not allowed; small letters"),
        ('[groups.a]\npool = "solo"', "workers.toml: groups.a.queues is missing; a list of queues"),
        ('[groups.a]\nqueue = "b"', "workers.toml: groups.a.queue is not known; allowed: queues, pool, concurrency, scale"),
        ('[groups.a]\n"a b" = 1', 'workers.toml: groups.a."a b" is not known'),
        ('[groups.a]\nqueues = "b"', 'workers.toml: groups.a.queues = "b" is not allowed; a list of queues, each once'),
    ],
)
def test_a_table_that_is_wrong_is_one_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    assert said in refused(tmp_path, text)


#: By field, values that are not allowed, as TOML has them.
WRONG = {
    "queues": ["[]", '["a", "a"]', '["a b"]', '["a,b"]', '["$a"]', '[""]', "[1]", "7", f'["{"a" * 201}"]'],
    "pool": ['"fork"', "1", "[]", "{}"],
    "concurrency": ["0", "10001", "2.5", '"2"', "true"],
    "scale": ["2", "{}", "{max = 2}", "{min = 0}", "{min = 1, most = 2}", '{min = "1"}', "{min = 1001}"],
    "target_wait": ["0", "-1", '"5"', "86401", "true"],
    "time_limit": ["-1", "86401", "1.5", '"60"', "true"],
    "memory": ['"2"', '"2t"', '"9m"', '"0g"', "2", '"512 m"', '""'],
    "cpus": ["0", "1025", '"1"', "true"],
    "max_tasks_per_child": ["0", "1.5", '"9"', "true"],
    "max_memory_per_child": ["0", '"200m"', "true"],
    **{one: ['""', "1.4", '"a b"', '"a/b"', '"-1"', f'"{"a" * 81}"', "true"] for one in ("version", "queue_version")},
}
#: Values that are allowed.
RIGHT = {
    "queues": ['["a"]', '["a", "b.c:d/e@f"]'],
    "pool": [f'"{pool}"' for pool in POOLS],
    "concurrency": ["1", "10000"],
    "scale": ["{min = 1}", "{min = 2, max = 2}", "{min = 1, max = 1000}"],
    "target_wait": ["0.1", "5", "86400"],
    "time_limit": ["0", "86400"],
    "memory": ['"10m"', '"512m"', '"2g"'],
    "cpus": ["0.01", "2", "1.5"],
    "max_tasks_per_child": ["1", "1000"],
    "max_memory_per_child": ["1", "200000"],
    **{one: ['"1.4"', '"v2-rc.1_a"', f'"{"a" * 80}"'] for one in ("version", "queue_version")},
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_value_that_is_wrong_is_one_line_and_the_schema_refuses_it_too(tmp_path: Path, field: str) -> None:
    """What was given, and what is allowed; and for values that are right, neither has anything to say."""
    for allowed, values in ((False, WRONG[field]), (True, RIGHT[field])):
        for value in values:
            others = "" if field == "queues" else 'queues = ["q"]\n'
            text = f"[groups.a]\n{others}{field} = {value}"
            why = refused(tmp_path, text)
            assert (not why) is allowed, (value, why)
            assert jsonschema.Draft202012Validator(schema()).is_valid(tomllib.loads(text)) is allowed, value
            if not allowed:
                assert why.startswith(f"workers.toml: groups.a.{field} = ") and why.endswith(
                    f"is not allowed; {FIELDS[field].kind.words}"
                )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("scale = {min = 3, max = 2}", 'groups.a.scale = {"min": 3, "max": 2} is not allowed; a max of at least min, 3'),
        ('pool = "solo"\nconcurrency = 2', "concurrency = 2 cannot be had on pool solo: tasks run one after the other; scale"),
        (
            'pool = "gevent"\nmax_tasks_per_child = 5',
            "max_tasks_per_child = 5 has no effect on pool gevent: there are no child",
        ),
        (
            'pool = "threads"\nmax_memory_per_child = 5',
            "max_memory_per_child = 5 has no effect on pool threads: there are no child",
        ),
    ],
)
def test_what_contradicts_itself_is_one_line(tmp_path: Path, fields: str, said: str) -> None:
    assert said in refused(tmp_path, f'[groups.a]\nqueues = ["q"]\n{fields}')


def test_a_pipe_and_a_folder_in_place_of_the_table_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder" / "workers.toml").mkdir(parents=True)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "workers.toml")
    for name in ("folder", "pipe"):
        _, why = unless_refused(partial(read, tmp_path / name, "prefork", 1))
        assert "workers.toml cannot be read: " in why


def test_the_schema_beside_it_is_that_of_the_fields() -> None:
    """`make docs` writes it; the example of the page is valid."""
    assert json.loads(SCHEMA.read_text()) == schema()
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(tomllib.loads(EXAMPLE), schema())
    assert FIELDS.keys() == WRONG.keys() == RIGHT.keys() == {one for one in vars(Group()) if one != "name"}


def test_what_is_typed_holds_for_groups_that_leave_it_out(folder: Path) -> None:
    table = read(folder, "threads", 2)
    typed = {"POOL": "threads", "SCALE": "2", "QUEUES": "a"}
    assert table.overruled(typed) == (
        f"{folder}/workers.toml comes first: POOL=threads holds for default; SCALE=2 holds for default, images; "
        "QUEUES=a holds for no group"
    )
    assert table.overruled({}) == Table(folder).overruled(typed) == ""


@pytest.mark.parametrize("group", [Group(), MAIL, IMAGES])
def test_a_group_is_read_back_from_its_label(group: Group) -> None:
    """Also by a version that does not know one of its fields."""
    assert Group.from_note(group.noted()) == group
    assert Group.from_note(json.dumps({**json.loads(group.noted()), "newer": 1})) == group


def test_a_workers_variables_are_those_that_its_group_names() -> None:
    assert MAIL.environ() == {
        "CELERY_WORKER_QUEUES": "mail", "POOL": "gevent", "CELERY_WORKER_CONCURRENCY": "200", "TASK_TIME_LIMIT": "60",
    }  # fmt: skip
    assert Group(pool="solo").environ() == {"POOL": "solo"}


def test_queues_without_a_group_and_limits_that_hold_in_part_are_said() -> None:
    table = Table(Path("workers.toml"), (MAIL, IMAGES))
    queue, limit, memory = notes(table, ["celery", "mail", "images"], {"mail": ["mail.send"], "images": ["a"]}, contained=False)
    assert queue == "no group of workers.toml consumes celery: its tasks wait"
    assert limit.startswith("mail on gevent, its time_limit and the time limit of mail.send: the task goes on to its end")
    assert memory == "images: memory and cpus hold in containers alone"
    assert list(notes(table, ["mail"], {}, contained=True)) == [limit.replace(" and the time limit of mail.send", "")]


def test_a_service_is_the_stacks_worker_with_what_its_group_says() -> None:
    made = services.service(IMAGES, "/compose.redis.yaml")
    assert made["extends"] == {"file": "/compose.redis.yaml", "service": "worker"}
    versioned = "${APP_VERSION:+-${APP_VERSION:-}}"
    assert made["image"].endswith(f":prefork${{PYTHON_TAG:-}}${{CELERY:+-celery${{CELERY:-}}}}{versioned}")
    assert "POOL" not in made["image"]
    assert made["build"] == {"args": {"POOL": "prefork"}}
    assert (made["scale"], made["mem_limit"], made["cpus"]) == (1, "2g", 2)
    assert made["stop_grace_period"] == "${STOP_GRACE_PERIOD:-900s30s}"
    assert made["environment"] == {**IMAGES.environ(), "CELERY_WORKER_HOSTNAME": "images@%h"}
    assert Group.from_note(made["labels"]["celery-kit.group"]) == IMAGES
    assert not {"mem_limit", "cpus", "stop_grace_period"} & services.service(Group("a"), "").keys()
    service = yaml.safe_load((ROOT / "deploy/compose/app.yaml").read_text())["services"]["worker"]
    assert "${POOL:-prefork}" in service["image"], "what a group's pool takes the place of"


def test_a_group_of_a_version_runs_its_image_beside_those_of_this_checkout() -> None:
    """beat is of the first group's version, and so are the queues that it sends to."""
    old, new = Group("old", queues=("mail",), version="1.4", queue_version="1.4"), Group("new", queues=("mail",))
    for table, beat in (([new, old], None), ([old, new], "1.4")):
        made = services.services("compose.yaml", table, {})
        assert made["worker-old"]["image"].endswith("${CELERY:+-celery${CELERY:-}}-1.4")
        assert made["worker-new"]["image"].endswith("${APP_VERSION:+-${APP_VERSION:-}}")
        assert made["worker-old"]["environment"]["QUEUE_VERSION"] == "1.4"
        assert "beat" not in made if beat is None else made["beat"]["image"] == made["worker-old"]["image"]
        assert beat is None or made["beat"]["environment"] == {"QUEUE_VERSION": "1.4"}


def test_beat_and_tools_without_docker_send_to_the_queues_of_the_version() -> None:
    """beat to those of the first group, everybody to those of a whole stack."""
    groups_of = [Group("a", queues=("x@1.4",), queue_version="1.4"), Group("b", queues=("y",))]
    own = {name: environ.get("QUEUE_VERSION") for name, (_, environ) in _commands(groups_of, None).items()}
    assert own == {"mail": None, "beat": "1.4", "worker-a-1": "1.4", "worker-b-1": None}
    about = {"address": "redis://a", "backend": "redis", "pool": "solo", "queues": "", "smtp": 1, "http": 2, "pid": 3}
    assert "QUEUE_VERSION" not in environment(about)
    assert environment(about | {"queue_version": "1.5"})["QUEUE_VERSION"] == "1.5"


def test_the_queues_of_a_group_are_those_of_its_version(folder: Path) -> None:
    """That of the group, or else that of the stack."""
    text = '[groups.a]\nqueues = ["x"]\nqueue_version = "1.4"\n[groups.b]\nqueues = ["x", "y@1"]\n'
    (folder / "workers.toml").write_text(text)
    assert [one.queues for one in read(folder, "prefork", 1).groups] == [("x@1.4",), ("x", "y@1")]
    with patch.dict(os.environ, QUEUE_VERSION="1.5"):
        assert [one.queues for one in read(folder, "prefork", 1).groups] == [("x@1.4",), ("x@1.5", "y@1")]


@pytest.mark.parametrize(
    ("given", "limits", "found"),
    [({}, [None], None), ({}, [None, 900], "90000000"), ({"TASK_TIME_LIMIT": "1000"}, [None, 900], "100000000"),
     ({}, [0, 60], "31536000000"), ({"CONSUMER_TIMEOUT": "9"}, [900], None)],
)  # fmt: skip
def test_the_broker_waits_longer_than_the_longest_limit(
    given: dict[str, str], limits: list[int | None], found: str | None
) -> None:
    """In milliseconds; None: as Compose derives it."""
    with patch.object(compose, "settings", lambda: given):
        made = compose._consumer_timeout([Group("a", time_limit=limit) for limit in limits])
    assert made.get("CONSUMER_TIMEOUT") == found


def test_processes_and_workers_are_named_by_their_group() -> None:
    made = _commands([replaced(MAIL, scale=(2, 4)), Group("mail-2", "solo", ("q",))], None)
    assert list(made) == ["mail", "beat", "worker-mail-1", "worker-mail-2", "worker-mail-2-1"]
    argv, environ = made["worker-mail-2"]
    assert argv[argv.index("--hostname") + 1] == "mail-2@%h" and argv[argv.index("--pool") + 1] == "gevent"
    assert environ == MAIL.environ()
    member = local._member({"name": "worker-mail-2-1", "running": True, "pid": 1})
    assert (member.role, member.group, (member.node or "").partition("@")[0]) == ("worker", "mail-2", "mail-2-1")
    assert "worker1" in _commands([Group(pool="solo")], None)
    assert local._member({"name": "worker1", "running": True, "pid": 1}).group == ""


def test_one_groups_logs_are_not_those_of_another_whose_name_begins_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(local, "HOME", tmp_path)
    monkeypatch.setattr(local, "ROOT", tmp_path)
    for name in ("worker-mail-1", "worker-mail-2-1", "beat"):
        (tmp_path / f"{name}.log").write_text(f"said by {name}\n")
    local.Local().logs(follow=False, group=MAIL)
    assert re.findall(r"said by (\S+)", capsys.readouterr().out) == ["worker-mail-1"]


def seen(*members: Member, **options: Any) -> Snapshot:
    worker = vitals_of({"pool": "gevent", "consuming": ["mail"], "active": 0})
    return Snapshot(Server("Broker", "1"), None, {"mail@a": worker}, list(members), **options)


WORKERS = (
    Member("worker", "running", True, "mail@a", group="mail"),
    Member("worker", "exited (1)", False, "mail@b", group="mail"),
)


def test_status_has_a_line_a_group() -> None:
    found = seen(*WORKERS, groups=(MAIL,))
    assert unpacked(packed(found)) == found
    shown = lines(found)
    heading = next(number for number, line in enumerate(shown) if line.startswith("group"))
    assert shown[heading + 1].split() == ["mail", "gevent", "1", "of", "1-4", "mail", "5", "s"]
    assert not any(line.startswith("group") for line in lines(seen(*WORKERS)))


@pytest.mark.parametrize(
    ("running", "waited", "said"),
    [
        ([MAIL], 4.0, []),
        ([MAIL], 6.0, ["a task has waited in queue mail for 6 s; group mail has 5 s"]),
        ([replaced(MAIL, scale=(2, 4))], 0.0, ["group mail runs with another scale than", "group mail has 1 of 2 workers"]),
        ([replaced(MAIL, target_wait=None)], 6.0, ["group mail runs with another target_wait than"]),
        ([], 0.0, ["group mail of"]),
        ([MAIL, Group("old", queues=("q",))], 0.0, ["group old runs, and", "group old has 0 of 1 workers"]),
        (None, 60.0, []),
    ],
)
def test_doctor_compares_what_runs_with_the_table(
    tmp_path: Path, running: list[Group] | None, waited: float, said: list[str]
) -> None:
    text = EXAMPLE[EXAMPLE.index("[groups.mail]") : EXAMPLE.index("[groups.images]")]
    (tmp_path / "workers.toml").write_text(text)
    found = [
        what for what, _ in faults(tmp_path, running, WORKERS, [Queue("mail", 1, oldest=waited), Queue("other", 1, oldest=9.0)])
    ]
    assert len(found) == len(said)
    assert all(what.startswith(begin) for what, begin in zip(found, said, strict=True)), found


def test_doctor_names_the_mistake_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "workers.toml").write_text("[groups.a]")
    ((what, fix),) = faults(tmp_path, None, (), ())
    assert what.endswith("groups.a.queues is missing; " + FIELDS["queues"].kind.words) and "docs/groups.md" in fix


def test_a_role_is_that_of_a_groups_service() -> None:
    assert [groups.role_of(one) for one in ("worker", MAIL.service, "beat", "broker")] == ["worker", "worker", "beat", "broker"]
