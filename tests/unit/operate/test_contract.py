"""`make contract`: what breaks between two versions of an app is found, and what does not is not."""

import inspect
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from celery_kit.operate.cli import cli
from celery_kit.operate.contract import LATER, calls, faults

APP = """
from celery import Celery
from kombu import Queue

app = Celery("shop", broker="memory://")
app.conf.update(
    task_routes={{{routes}}},
    beat_schedule={{{beat}}},
    task_queues=[Queue("celery"){queues}],
    {settings}
)

{tasks}
"""


def repository(folder: Path, **parts: str) -> Path:
    """A git repository with an app of these parts."""
    folder.mkdir()
    write(folder, **parts)
    subprocess.run(["git", "-C", str(folder), "init", "-q"], check=True)
    return commit(folder)


def commit(folder: Path) -> Path:
    for words in (["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "old"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True)
    return folder


def write(folder: Path, **parts: str) -> None:
    given = {"routes": "", "beat": "", "queues": "", "settings": "", "tasks": "", **parts}
    (folder / "shop.py").write_text(APP.format(**given))


def contract(folder: Path, *words: str, **environ: str) -> Result:
    """What the command says, and its exit code."""
    given = {"APP": "shop:app", "SOURCE": str(folder), "BASE": "HEAD", "BROKER": "", "QUEUES": "", **environ}
    return CliRunner().invoke(cli, ["contract", *words], env=given)


def task(name: str, parameters: str, options: str = "", number: int = 0) -> str:
    return f"@app.task(name={name!r}{options and ', '}{options})\ndef f{number}({parameters}): pass\n"


OLD, NEW = "old messages → new workers", "new messages → old workers"
#: By name: the parameters in the old code and in the new, and the lines that say what breaks.
PLANTED: dict[str, tuple[str, str, list[str]]] = {
    "required": (
        "to", "to, subject",
        [f"{OLD}: required: sent as (to): missing a required argument: 'subject'; give it a default",
         f"{NEW}: required: sent as (to, subject): too many positional arguments; {LATER}",
         f"{NEW}: required: sent as (to=…, subject=…): got an unexpected keyword argument 'subject'; {LATER}"],
    ),
    "removed": (
        "to, copy=None", "to",
        [f"{OLD}: removed: sent as (to, copy): too many positional arguments; keep the argument, or take **kwargs,",
         f"{OLD}: removed: sent as (to=…, copy=…): got an unexpected keyword argument 'copy'; keep the argument,"],
    ),
    "renamed": (
        "to, text", "to, body",
        [f"{OLD}: renamed: sent as (to=…, text=…): got an unexpected keyword argument 'text'; keep the argument,",
         f"{NEW}: renamed: sent as (to=…, body=…): got an unexpected keyword argument 'body'; {LATER}"],
    ),
    "ordered": (
        "a, b", "b, a",
        [f"{OLD}: ordered: sent as (a, b): what is sent as a by position is taken as b; keep the order;",
         f"{OLD}: ordered: sent as (a, b): what is sent as b by position is taken as a; keep the order;",
         f"{NEW}: ordered: sent as (b, a): what is sent as b by position is taken as a; likewise",
         f"{NEW}: ordered: sent as (b, a): what is sent as a by position is taken as b; likewise"],
    ),
    "by keyword": (
        "a, b=1", "a, *, b=1",
        [f"{OLD}: by keyword: sent as (a, b): too many positional arguments; keep the argument,"],
    ),
    "no more": (
        "a, *rest, **more", "a",
        [f"{OLD}: no more: sent as (a, more): too many positional arguments; keep the argument,",
         f"{OLD}: no more: sent as (a=…, more=…): got an unexpected keyword argument 'more'; keep the argument,"],
    ),
    "optional": (
        "a", "a, b=1",
        [f"{NEW}: optional: sent as (a, b): too many positional arguments; {LATER}",
         f"{NEW}: optional: sent as (a=…, b=…): got an unexpected keyword argument 'b'; {LATER}"],
    ),
    "default": ("a", "a=1", [f"{NEW}: default: sent as (): missing a required argument: 'a'; go on sending it, or {LATER}"]),
    "same": ("a, b=1, *c, d, e=2, **f", "a, b=2, *c, d, e=3, **f", []),
    "by position": ("a, /, b=1", "x, /, b=1", []),
    "taken already": ("a, **more", "a, *, b=1, **more", []),
}  # fmt: skip


def test_each_planted_break_is_a_line(tmp_path: Path) -> None:
    """And what does not break is none: the last three."""
    numbered = [(n, name, old, new) for n, (name, (old, new, _)) in enumerate(PLANTED.items())]
    before, after = ("".join(task(row[1], str(row[side]), number=row[0]) for row in numbered) for side in (2, 3))
    folder = repository(tmp_path / "shop", tasks=before + task("gone", "", number=98))
    write(folder, tasks=after + task("added", "", number=99))
    said = contract(folder)
    found = [line for line in said.stdout.splitlines() if not line.startswith("note: ")]
    expected = [line for _, _, lines in PLANTED.values() for line in lines]
    expected += [f"{OLD}: gone: no task of this name: a dead letter; keep a task of this name until no message of the old code"]
    expected += [f"{NEW}: added: no task of this name: a dead letter; {LATER}"]
    assert said.exit_code == 1
    assert not [one for one in expected if not any(line.startswith(one) for line in found)]
    assert len(found) == len(expected), found
    assert "note: old and new code: same: b is 2 where it is left out, and was 1" in said.stdout


def test_what_only_old_workers_cannot_run_is_a_note_if_workers_are_updated_first(tmp_path: Path) -> None:
    folder = repository(tmp_path / "shop", tasks=task("mail", "to"))
    write(folder, tasks=task("mail", "to, copy=None") + task("more", "", number=1))
    said = contract(folder, WORKERS_FIRST="1")
    assert said.exit_code == 0
    assert [line.startswith(f"note: {NEW}") for line in said.stdout.splitlines()] == [True] * 3
    found = json.loads(contract(folder, WORKERS_FIRST="1", JSON="1").stdout)
    assert (found["base"], found["tasks"], len(found["findings"])) == ("HEAD", 2, 3)
    assert all({*one} == {"way", "task", "what", "do", "note"} and one["note"] for one in found["findings"])


ROUTED = """'mail': {'queue': 'mail'}, 'sms': {'queue': 'sms'}, 'fax': {'queue': 'fax'}"""


def test_what_beat_sends_and_where_tasks_wait_is_compared(tmp_path: Path) -> None:
    """A queue that no worker consumed before either is somebody else's."""
    both = "".join(task(name, "to", number=n) for n, name in enumerate(("mail", "sms", "fax")))
    table = "[groups.all]\nqueues = ['celery', 'mail', 'sms']\n"
    entry = "'hourly': {'task': 'mail', 'schedule': 1, 'args': ['all']}"
    folder = repository(tmp_path / "shop", tasks=both, routes=ROUTED, beat=entry)
    (folder / "workers.toml").write_text(table)
    commit(folder)
    (folder / "workers.toml").write_text(table.replace(", 'sms'", ""))
    routes = ROUTED.replace("{'queue': 'mail'}", "{'queue': 'post'}")
    write(
        folder, tasks=both, routes=routes, beat=entry.replace("['all']", "[]") + ", 'daily': {'task': 'nothing', 'schedule': 1}"
    )
    found = contract(folder).stdout.splitlines()
    assert [line.partition("; ")[0] for line in found] == [
        f"{NEW}: mail (beat's entry 'hourly'): missing a required argument: 'to'",
        f"{NEW}: nothing (beat's entry 'daily'): no task of this name",
        "new messages → new workers: mail (beat's entry 'hourly'): missing a required argument: 'to'",
        "new messages → new workers: nothing (beat's entry 'daily'): no task of this name",
        f"{OLD}: sms: wait in queue sms, which no worker of the new code consumes",
        "new messages → new workers: mail: wait in queue post, which no worker of the new code consumes",
        "new messages → new workers: sms: wait in queue sms, which no worker of the new code consumes",
    ]


def test_what_cannot_be_read_is_found(tmp_path: Path) -> None:
    """Serializers, compression, results, and queues that are declared otherwise, where the broker refuses that."""
    folder = repository(tmp_path / "shop", tasks=task("mail", "to"), queues=", Queue('mail')")
    new = "task_serializer='yaml', accept_content=['yaml'], result_serializer='yaml'"
    write(
        folder,
        tasks=task("mail", "to", "typing=False, ignore_result=True"),
        settings=new,
        queues=", Queue('mail', max_length=9)",
    )
    (folder / "shop.py").write_text(
        (folder / "shop.py").read_text().replace("max_length=9", "queue_arguments={'x-max-length': 9}")
    )
    found = contract(folder, BROKER="rabbitmq").stdout.splitlines()
    assert [line.partition("; ")[0] for line in found] == [
        f"{OLD}: mail: its messages are application/json, which is not accepted",
        "old results → new readers: all tasks: results are application/json, which the other code does not accept",
        f"{NEW}: mail: its messages are application/x-yaml, which is not accepted",
        "new results → old readers: all tasks: results are application/x-yaml, which the other code does not accept",
        "old and new workers: queue mail: is declared otherwise: x-max-length None, now 9",
        "note: old and new code: mail: typing is False, and was True: without it a call is sent unchecked, whatever it has",
        "note: old and new code: mail: ignore_result is True, and was False: the code that sends decides",
    ]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"BASE": ""}, "BASE is missing; for example: make contract BASE=origin/main"),
        ({"BASE": "nothing"}, "BASE=nothing is no commit of {folder}; a branch, a tag or a hash, such as origin/main"),
        ({"BASE": "--all"}, "BASE=--all is no commit of {folder}; a branch, a tag or a hash, such as origin/main"),
        ({"SOURCE": "/usr/share", "APP": "zoneinfo:app"}, "BASE=HEAD: /usr/share is in no git repository"),
        ({"APP": "shop:nothing"}, "shop:nothing in"),
    ],
)
def test_what_cannot_be_compared_is_one_line(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    folder = repository(tmp_path / "shop")
    Path("/usr/share/zoneinfo").exists() or pytest.fail("a folder that is in no repository")
    done = contract(folder, **environ)
    assert done.exit_code == 2
    assert len(done.output.splitlines()) == 1 and said.format(folder=folder) in done.output


def test_an_app_that_does_not_import_is_one_line_that_says_which(tmp_path: Path) -> None:
    folder = repository(tmp_path / "shop", tasks="import nothing_of_this_name")
    for tasks, at, why in ((None, "BASE=HEAD: ", "No module named 'nothing_of_this_name'"), ("def (:", "", "invalid syntax")):
        if tasks:
            commit(folder)
            write(folder, tasks=tasks)
        done = contract(folder)
        assert done.exit_code == 2 and len(done.output.splitlines()) == 1
        assert done.output.startswith(f"celery-kit: {at}shop:app in ") and why in done.output
        write(folder)


SIGNATURES: list[Callable[..., object]] = [
    lambda: 0, lambda a: 0, lambda a, b: 0, lambda b, a: 0, lambda a, b=1: 0, lambda a=1, b=2: 0, lambda a, /, b: 0,
    lambda a, *, b: 0, lambda a, *, b=1: 0, lambda *a: 0, lambda **a: 0, lambda a, *b, c=1, **d: 0, lambda a, b, /, *, c=1: 0,
]  # fmt: skip


@pytest.mark.parametrize("of", SIGNATURES, ids=inspect.signature)
def test_the_calls_of_a_signature_are_what_it_allows_and_reach_its_extremes(of: Callable[..., object]) -> None:
    """Each runs, and no parameter is in all of them that need not be, nor in none."""
    signature = inspect.signature(of)
    made = list(calls(signature))
    bound = [signature.bind(*call.args, **call.kwargs).arguments for call in made]
    for call in made:
        of(*call.args, **call.kwargs)
        assert not list(faults(call, signature, signature))
    for name, one in signature.parameters.items():
        variable = one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        assert any(name in arguments for arguments in bound)
        assert (one.default is one.empty and not variable) == all(name in arguments for arguments in bound)


@pytest.mark.parametrize("of", SIGNATURES, ids=inspect.signature)
def test_a_fault_is_what_a_worker_would_raise(of: Callable[..., object]) -> None:
    """For each other signature: a call that has none runs there, and one that raises TypeError there has one."""
    for to in SIGNATURES:
        for call in calls(inspect.signature(of)):
            found = list(faults(call, inspect.signature(of), inspect.signature(to)))
            try:
                to(*call.args, **call.kwargs)
            except TypeError:
                assert found
            else:
                assert all(one.kind == "moved" for one in found)
