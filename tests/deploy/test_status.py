"""`make status` in front of what can be: a healthy stack, a stopped worker, a long queue, a stopped broker."""

import re
import subprocess

import pytest

from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout
from tests.harness.waiting import until

LONG = 10_000


def compose(checkout: Checkout, broker: str, *argv: str, words: str = "", **environ: str) -> None:
    """`docker compose …` on the stack; `words` go to its standard input."""
    file, project = f"compose.{broker}.yaml", checkout.environ["COMPOSE_PROJECT_NAME"]
    subprocess.run(
        ["docker", "compose", "-p", project, "-f", file, *argv],
        cwd=checkout.folder,
        env={**checkout.environ, **environ},
        input=words,
        text=True,
        check=True,
        capture_output=True,
    )


def status(checkout: Checkout) -> str:
    done = checkout.make("status")
    assert done.returncode == 0
    return done.stdout


def queue(said: str, name: str = "celery") -> list[str]:
    """Waiting, unacknowledged, consumers, oldest."""
    return next(line for line in said.splitlines() if line.startswith(f"{name} ")).split()[1:]


@pytest.mark.parametrize("broker", SERVERS)
def test_status_tells_each_state_of_a_stack(checkout: Checkout, broker: str) -> None:
    assert checkout.make("up", f"BROKER={broker}", "POOL=threads", REPORT_EVERY="1").returncode == 0
    until("beat tells its last run", lambda: "trying out: last run" in status(checkout), 60)
    healthy = status(checkout)
    assert re.search(r"^broker    \w+ \d+\.\d+\.\d+.* at \w+://", healthy, re.MULTILINE)
    assert re.search(r"^celery@\w+ +threads +16 +consuming +celery +\d+ +\d+ +[1-9]\d* +[1-9]\d* MB$", healthy, re.MULTILINE)
    assert re.search(r"^beat      running, healthy$", healthy, re.MULTILINE)
    assert re.search(r"daily statistics: not run yet, next in \d+ (min|h|s)", healthy)

    compose(checkout, broker, "stop", "beat")
    compose(checkout, broker, "kill", "worker")
    stopped = status(checkout)
    assert re.search(r"^celery@\w+ +EXITED \(137\)", stopped, re.MULTILINE)
    assert re.search(r"^beat      EXITED \(\d+\)$", stopped, re.MULTILINE)

    before = int(queue(stopped)[0])
    words = '["a@b.c", "hi"]\n' * LONG
    compose(
        checkout, broker, "run", "--rm", "-T", "--no-deps", "worker",
        "python", "-m", "celery_kit.operate.look.send", "mail.send_email", "-", words=words,
    )  # fmt: skip
    assert int(queue(status(checkout))[0]) == before + LONG

    compose(checkout, broker, "stop", "broker")
    gone = status(checkout)
    assert re.search(r"^broker    \w+://.*: DOES NOT ANSWER \(.*refused", gone, re.MULTILINE)
