"""The stack without Docker: `make demo`, and the embedded broker kept running."""

import json
import os
import platform
import re
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from celery_kit.operate.stacks.pythons import PYTHONS
from celery_kit.pools.table import POOLS
from tests.deploy.conftest import Checkout
from tests.harness.terminal import Terminal
from tests.harness.waiting import until

NO_DOCKER = {"DOCKER_HOST": "unix:///nonexistent/docker.sock"}


@pytest.fixture
def stack(checkout: Checkout) -> Path:
    """The embedded stack, running on the solo pool; gives its folder."""
    if not (checkout.folder / ".kit/embedded/stack.json").exists():
        assert checkout.make("up", "POOL=solo", **NO_DOCKER).returncode == 0
    return checkout.folder / ".kit/embedded"


@pytest.mark.parametrize("pool", POOLS)
def test_the_demo_ends_with_real_results_on_every_pool(checkout: Checkout, pool: str) -> None:
    done = checkout.make("demo", f"POOL={pool}", **NO_DOCKER)
    assert done.returncode == 0
    assert done.stdout.count("SUCCESS") == 10 and "FAILURE" not in done.stdout
    assert "Caught: 12 mails, 1 SMS" in done.stdout
    assert "make up BROKER=rabbitmq" in done.stdout
    assert sorted(path.name for path in (checkout.folder / ".kit/data/demo").glob("*.jpg"))
    assert checkout.make("status", **NO_DOCKER).returncode == 2, "the demo left its stack running"


def test_what_is_sent_is_looked_up_by_another_command(checkout: Checkout, stack: Path) -> None:
    sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')
    shown = checkout.make("result", f"ID={sent.stdout.strip()}", "WAIT=20")
    assert shown.returncode == 0
    assert shown.stdout.startswith("state     SUCCESS\n")


def test_a_second_start_is_refused_with_a_clear_word(checkout: Checkout, stack: Path) -> None:
    assert "an embedded stack runs already (pool solo, process" in checkout.refusal(checkout.make("up"))


def test_another_python_than_this_machines_is_refused(checkout: Checkout, stack: Path) -> None:
    """There are no images here that it could be of."""
    other = next(version for version in PYTHONS if not platform.python_version().startswith(f"{version}."))
    for command in ("up", "demo"):
        said = checkout.refusal(checkout.make(command, f"PYTHON={other}"))
        assert f"PYTHON={other} chooses images, and none is used here" in said
    env = checkout.folder / ".env"
    before = env.read_text() if env.exists() else ""
    env.write_text(f"{before}PYTHON={other}\n")  # a choice for the stacks that have images
    try:
        assert "an embedded stack runs already" in checkout.refusal(checkout.make("up"))
    finally:
        env.write_text(before)


def test_the_demo_joins_a_stack_that_runs(checkout: Checkout, stack: Path) -> None:
    done = checkout.make("demo")
    assert done.returncode == 0
    assert "Joining the embedded stack that runs already (pool solo)" in done.stdout
    assert "solo  1        consuming" in checkout.make("status").stdout, "the demo stopped a stack that was not its own"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["TASK=mail.unknown"], "TASK=mail.unknown is not known; allowed: mail.send_email, "),
        (["TASK=mail.send_email", "ARGS=[1,"], "ARGS=[1, is not JSON"),
        (["TASK=mail.send_email", 'ARGS={"to": 1}'], "is not an array"),
        (["TASK=mail.send_email", "KWARGS=[]"], "is not an object"),
        (["TASK=mail.send_email", 'ARGS=["only one"]'], "do not fit mail.send_email: missing 1 required positional argument"),
        (["TASK=mail.send_email", "ARGS=[1,2,3,4,5]"], "do not fit mail.send_email: takes"),
        ([], "TASK is missing"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(checkout: Checkout, stack: Path, words: list[str], said: str) -> None:
    assert said in checkout.refusal(checkout.make("send", *words))


def test_what_cannot_be_run_is_listed_sent_back_and_dropped(checkout: Checkout, stack: Path) -> None:
    with Redis.from_url(f"{json.loads((stack / 'stack.json').read_text())['address']}/0") as broker:
        broker.lpush("celery", b"no message")
    until("it is set aside", lambda: "queue celery" in checkout.make("dead").stdout, 30)
    assert checkout.make("dead").stdout.endswith("1 dead letter\n")
    assert "no dead letter has the id 0; 'make dead' lists them" in checkout.refusal(checkout.make("dead", "RETRY=0"))
    assert checkout.make("dead", "RETRY=all").stdout.endswith("1 sent back\n")
    until("it is set aside again", lambda: "queue celery" in checkout.make("dead").stdout, 30)
    assert checkout.make("dead", "DROP=all").stdout.endswith("1 dropped\n")
    assert checkout.make("dead").stdout == "0 dead letters\n"


def test_what_runs_is_watched_and_worked_on(checkout: Checkout, stack: Path) -> None:
    """Its processes, the table that stays, and a worker beside it from the code as it is; Ctrl-C ends the last two."""
    assert re.search(r"^worker1 +process \d+$", checkout.make("ps").stdout, re.MULTILINE)
    for words, shown in ((("top",), "consuming"), (("dev", "POOL=solo"), "ready.")):
        terminal = Terminal("make", *words, cwd=checkout.folder, environ=checkout.environ)
        try:
            terminal.shows(shown)
            os.killpg(terminal.process.pid, signal.SIGINT)
            until(f"make {words[0]} ends", lambda: terminal.process.poll() is not None, 30)  # noqa: B023
        finally:
            with suppress(ProcessLookupError):
                os.killpg(terminal.process.pid, signal.SIGKILL)


@pytest.mark.parametrize("command", ["celery -A app worker --pool gevent", "python -m app.worker"])
def test_a_worker_needs_no_make(checkout: Checkout, stack: Path, command: str) -> None:
    address = json.loads((stack / "stack.json").read_text())["address"]
    urls = {"CELERY_BROKER_URL": f"{address}/0", "CELERY_RESULT_BACKEND": f"{address}/1"}
    program, *words = command.split()
    environ = {**checkout.environ, **urls}
    words += ["--loglevel", "INFO", "--hostname", "alone@%h"]
    terminal = Terminal(f".venv/bin/{program}", *words, cwd=checkout.folder, environ=environ)
    try:
        terminal.shows("ready.")
        terminal.process.terminate()
        assert terminal.process.wait(30) == 0
    finally:
        terminal.process.kill()


def test_what_was_accepted_survives_a_stop(checkout: Checkout, stack: Path) -> None:
    sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "COUNTDOWN=4")
    assert checkout.make("down").returncode == 0
    assert checkout.make("up", "POOL=threads").returncode == 0
    assert "SUCCESS" in checkout.make("result", f"ID={sent.stdout.strip()}", "WAIT=40").stdout
    assert checkout.make("down").returncode == 0


def test_a_pause_outlives_the_stack(checkout: Checkout, stack: Path) -> None:
    """What each command says as JSON is all that it prints on standard output."""
    assert "QUEUE=nix is not known; allowed: celery" in checkout.refusal(checkout.make("pause", "QUEUE=nix"))
    assert "the stack runs without worker groups" in checkout.refusal(checkout.make("resume", "GROUP=nix", "JSON=1"))
    done = checkout.make("pause", "QUEUE=celery")
    assert done.returncode == 0 and "celery is paused: " in done.stdout

    def said(command: str, *words: str) -> Any:
        return json.loads(checkout.make(command, *words, "JSON=1").stdout)

    (sent,) = said("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')["sent"]
    assert checkout.make("down").returncode == 0
    assert checkout.make("up", "POOL=threads").returncode == 0
    found = said("status")
    assert [(one["name"], one["waiting"], one["paused"]) for one in found["queues"]] == [("celery", 1, True)]
    assert [(one["state"], one["paused"]) for one in found["workers"]] == [("paused", ["celery"])]
    assert [one["fix"] for one in said("doctor")["notes"]] == ["make resume QUEUE=celery"]
    assert said("result", f"ID={sent['id']}")["state"] == "PENDING"
    assert said("dead") == {"done": "listed", "letters": []}
    assert {"worker", "beat"} <= {one["role"] for one in said("ps")["processes"]}
    assert {*said("urls")} >= {"CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "MAIL_URL"}
    (state,) = said("resume", "QUEUE=celery")["queues"]
    assert (state["paused"], state["changed"]) == (False, True)  # its task may have been taken meanwhile
    assert said("result", f"ID={sent['id']}", "WAIT=40")["state"] == "SUCCESS"
    assert checkout.make("down").returncode == 0


def test_a_killed_stack_leaves_nothing_that_stands_in_the_way(checkout: Checkout, stack: Path) -> None:
    os.kill(json.loads((stack / "stack.json").read_text())["pid"], signal.SIGKILL)
    until("the lock is free", lambda: checkout.make("ps").returncode == 2, 10)
    assert checkout.make("up", "POOL=solo").returncode == 0
    assert "left over from a stack that was killed" in (stack / "stack.log").read_text()
    assert checkout.make("down").returncode == 0


def test_of_two_beats_one_leads(checkout: Checkout) -> None:
    """Another one leads when it is killed, which ends no stack, and it is started again to follow."""

    def beats() -> list[str]:
        shown = checkout.make("status").stdout.splitlines()
        return sorted(line.rpartition(", ")[2] for line in shown if line.startswith("beat "))

    checkout.make("down")
    assert checkout.make("up", "POOL=solo", "BEATS=2", **NO_DOCKER).returncode == 0
    until("one leads", lambda: beats() == ["follows", "leads"], 30)
    notes = [json.loads(file.read_text()) for file in (checkout.folder / ".kit/embedded").glob("beat*.pid")]
    shown = checkout.make("status").stdout
    leader = next(one["pid"] for one in notes if f"process {one['pid']}, leads" in shown)
    os.kill(leader, signal.SIGKILL)
    until(
        "another one leads",
        lambda: beats() == ["follows", "leads"] and f"{leader}, leads" not in checkout.make("status").stdout,
        60,
    )
    checkout.make("down")
