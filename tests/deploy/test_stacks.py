"""The stacks of containers, as a user types them. QUICK=1: each pool once, and some tests on one broker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from celery_kit.brokers import BROKERS
from celery_kit.pools.table import POOLS
from celery_kit.results import BACKENDS
from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout
from tests.harness.combinations import one_of
from tests.harness.terminal import Terminal
from tests.harness.waiting import until

FRESH = """
from celery import shared_task

@shared_task
def answer() -> int:
    return 42
"""


def owned(checkout: Checkout, *listing: str) -> list[str]:
    label = f"label=com.docker.compose.project={checkout.environ['COMPOSE_PROJECT_NAME']}"
    listed = subprocess.run(["docker", *listing, "--quiet", "--filter", label], capture_output=True, text=True, check=True)
    return listed.stdout.split()


def containers(checkout: Checkout) -> list[str]:
    """The stack's own. Compose labels images too, so whatever runs from one that it built carries the project's name."""
    return owned(checkout, "ps", "--all", "--filter", "label=com.docker.compose.oneoff=False")


def volumes(checkout: Checkout) -> list[str]:
    return owned(checkout, "volume", "ls")


def caught(checkout: Checkout) -> Any:
    """The messages that the mail catcher has, by the address that `make urls` prints."""
    shown = dict(line.split("=", 1) for line in checkout.make("urls").stdout.splitlines())
    return json.loads(checkout.run("curl", "-sf", f"{shown['MAIL_URL']}messages").stdout)


@pytest.fixture(autouse=True)
def nothing_left(checkout: Checkout) -> Iterator[None]:
    yield
    checkout.make("down")
    assert not containers(checkout)


@pytest.mark.parametrize(("broker", "pool"), [(one, pool) for turn, pool in enumerate(POOLS) for one in one_of(SERVERS, turn)])
def test_up_send_result_down(checkout: Checkout, broker: str, pool: str) -> None:
    up = checkout.make("up", f"BROKER={broker}", f"POOL={pool}")
    assert up.returncode == 0
    assert f"{broker}, {pool}, results by redis: running and healthy" in up.stdout
    sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')
    shown = checkout.make("result", f"ID={sent.stdout.strip()}", "WAIT=30")
    assert shown.stdout.startswith("state     SUCCESS\n")
    worker = rf"celery@\w+ +{pool} +\d+ +consuming +celery +0 +0 +1 "
    assert re.search(worker, checkout.make("status").stdout)
    assert checkout.make("down").returncode == 0
    assert not containers(checkout)
    assert volumes(checkout), "down deleted the data"


@pytest.mark.parametrize("broker", one_of(SERVERS))
@pytest.mark.parametrize("backend", [name for name, backend in BACKENDS.items() if not backend.has_server])
def test_without_a_results_server(checkout: Checkout, broker: str, backend: str) -> None:
    assert checkout.make("up", f"BROKER={broker}", "POOL=threads", f"BACKEND={backend}", "SCALE=2").returncode == 0
    services = checkout.run("docker", "compose", "ps", "--services", "-a", COMPOSE_FILE=f"compose.{broker}.yaml").stdout.split()
    assert sorted(services) == ["beat", "broker", "mail", "worker"]
    sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]', "WAIT=30")
    assert "state     SUCCESS" in sent.stdout
    assert len(re.findall(r"^celery@\w+ +threads .* consuming ", checkout.make("status").stdout, re.MULTILINE)) == 2


@pytest.mark.parametrize("given", ["", "+sbwt short"])
def test_rabbitmqs_threads_look_for_work_before_they_sleep(checkout: Checkout, given: str) -> None:
    """As .env.example says, or as the user says: of two options the last one counts."""
    told = {"COMPOSE_FILE": "compose.rabbitmq.yaml", "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": given}
    checkout.run("docker", "compose", "up", "--detach", "broker", **told)
    found = until(
        "the server has its options",
        lambda: re.findall(r"[-+]sbwt (\w+)", checkout.run("docker", "compose", "top", "broker", **told).stdout),
    )
    assert found[-1] == (given.removeprefix("+sbwt ") or "very_short")


@pytest.mark.parametrize("broker", SERVERS)
def test_a_compose_file_works_alone(checkout: Checkout, broker: str) -> None:
    file = f"compose.{broker}.yaml"
    assert checkout.run("docker", "compose", "-f", file, "up", "--detach", "--wait", "--wait-timeout", "180").returncode == 0
    sent = checkout.run(
        "docker", "compose", "-f", file, "exec", "-T", "worker",
        "python", "-m", "celery_kit.operate.look.send", "mail.send_email", '["a@b.c", "hi"]', "--wait", "30",
    )  # fmt: skip
    assert "state     SUCCESS" in sent.stdout
    assert checkout.run("docker", "compose", "-f", file, "down").returncode == 0


@pytest.mark.parametrize("broker", one_of(SERVERS, 1))
def test_a_worker_of_this_machine_works_for_the_stack(checkout: Checkout, broker: str) -> None:
    """`make dev` beside the containers: what is written into app/ now runs, and its mail is caught with theirs."""
    assert checkout.make("up", f"BROKER={broker}", "POOL=threads").returncode == 0
    terminal = Terminal("make", "dev", "POOL=threads", cwd=checkout.folder, environ=checkout.environ)
    new = checkout.folder / "app/tasks/fresh.py"
    try:
        terminal.shows("ready.")
        project = checkout.environ["COMPOSE_PROJECT_NAME"]
        checkout.run("docker", "compose", "-p", project, "stop", "worker")  # so that the other one has each task
        terminal.text = ""
        new.write_text(FRESH)
        terminal.shows("ready.")
        sent = checkout.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "by hand"]', "WAIT=30")
        assert "state     SUCCESS" in sent.stdout
        shown = dict(line.split("=", 1) for line in checkout.make("urls").stdout.splitlines())
        ask = "from celery_kit import Kit; print(Kit('own').send_task('fresh.answer').get(timeout=30))"
        assert checkout.run(sys.executable, "-c", ask, **shown).stdout == "42\n"
    finally:
        new.unlink(missing_ok=True)
        with suppress(ProcessLookupError):
            os.killpg(terminal.process.pid, signal.SIGINT)
            terminal.process.wait(60)
    assert [message["subject"] for message in caught(checkout)] == ["by hand"]


#: A program of the user's own, with the addresses that it is given.
OWN = """
from celery_kit import Kit
app = Kit("own")
print(app.send_task("mail.send_email", ["a@b.c", "from a program"]).get(timeout=30))
"""


@pytest.mark.parametrize("broker", one_of(SERVERS))
def test_a_program_of_this_machine_gets_the_addresses(checkout: Checkout, broker: str) -> None:
    assert checkout.make("up", f"BROKER={broker}", "POOL=threads").returncode == 0
    shown = dict(line.split("=", 1) for line in checkout.make("urls").stdout.splitlines())
    assert list(shown) == ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND", "ADMIN_PASSWORD", "MAIL_URL"]
    assert len(shown.pop("ADMIN_PASSWORD")) > 25 and len(shown.pop("MAIL_URL")) > 50
    sent = checkout.run(sys.executable, "-c", OWN, **shown)
    assert sent.returncode == 0 and "@celery-kit" in sent.stdout


def test_beat_sends_by_its_timetable(checkout: Checkout) -> None:
    assert checkout.make("up", "BROKER=redis", "POOL=threads", REPORT_EVERY="1").returncode == 0
    assert caught(checkout) == []
    until("beat's report ran", lambda: "reports.daily_statistics" in checkout.make("logs").stdout, 60)


@pytest.mark.parametrize("words", [["BROKER=redis"], ["BROKER=rabbitmq", "BACKEND=rpc"]], ids=["redis", "rabbitmq"])
def test_of_two_beats_one_leads(checkout: Checkout, words: list[str]) -> None:
    """Another one leads when it is killed. `make status` names it, `make doctor` finds nothing wrong."""

    def beats() -> list[str]:
        return [line for line in checkout.make("status").stdout.splitlines() if line.startswith("beat ")]

    def led(line: str) -> list[str]:
        return [one for one in beats() if line in one]

    assert checkout.make("up", *words, "POOL=threads", "BEATS=2", REPORT_EVERY="1").returncode == 0
    until("one leads", lambda: len(led(", leads")) == len(led(", follows")) == 1, 60)
    until("beat's report ran", lambda: "reports.daily_statistics" in checkout.make("logs").stdout, 60)
    assert not [line for line in checkout.make("doctor").stdout.splitlines() if "beat" in line]
    project = checkout.environ["COMPOSE_PROJECT_NAME"]
    leader = next(number for number in (1, 2) if '"": true' in said_by(f"{project}-beat-{number}"))
    subprocess.run(["docker", "pause", f"{project}-beat-{leader}"], check=True, stdout=subprocess.DEVNULL)
    until("the other one leads", lambda: '"": true' in said_by(f"{project}-beat-{3 - leader}"), 60)
    subprocess.run(["docker", "unpause", f"{project}-beat-{leader}"], check=True, stdout=subprocess.DEVNULL)
    until("one follows again", lambda: len(led(", leads")) == len(led(", follows")) == 1, 60)


def said_by(beat: str) -> str:
    """What a beat has written about its timetable."""
    command = ["docker", "exec", beat, "sh", "-c", 'cat "$HEARTBEAT_FILE.timetable"']
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def test_a_port_in_use_is_named_and_nothing_starts(checkout: Checkout) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = checkout.refusal(checkout.make("up", "BROKER=redis", REDIS_PORT=port))
    assert f"port {port} for broker is in use; free it, or choose another: REDIS_PORT=" in said
    assert not containers(checkout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["BROKER=kafka"], f"'kafka' is not one of {', '.join(map(repr, BROKERS))}"),
        (["BROKER=redis", "POOL=fork"], "'fork' is not one of 'prefork', 'eventlet', 'gevent', 'threads', 'solo'"),
        (["BROKER=redis", "BACKEND=db"], "'db' is not one of 'redis', 'rpc'"),
        (["BROKER=redis", "PYTHON=2.7"], "PYTHON=2.7 is not known; allowed: 3.12, 3.13, 3.14"),
        (["BROKER=redis", "SCALE=0"], "0 is not in the range"),
        (["BROKER=redis", "BEATS=10"], "BEATS=10 is not allowed; a whole number from 1 to 9"),
        (["BROKER=redis", "TIMEZONE=Mars/Olympus"], "TIMEZONE=Mars/Olympus is not known"),
        (["BROKER=redis", "TASK_TIME_LIMIT=soon"], "TASK_TIME_LIMIT=soon is not allowed"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(checkout: Checkout, words: list[str], said: str) -> None:
    assert said in checkout.refusal(checkout.make("up", *words))
    assert not containers(checkout)


def test_commands_say_so_where_no_stack_runs(checkout: Checkout) -> None:
    for command in ("send TASK=mail.send_email", "result ID=1", "status", "logs", "ps"):
        assert "no stack runs; start one with 'make up'" in checkout.refusal(checkout.make(*command.split()))
