"""Another broker takes over, as a user types it: two stacks of one checkout. celery_kit/operate/migrate.py"""

from collections.abc import Iterator

import pytest

from tests.deploy.conftest import Checkout, kill, of_its_own
from tests.harness.waiting import until

MAIL = ("TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')


@pytest.fixture
def stacks(checkout: Checkout) -> Iterator[dict[str, dict[str, str]]]:
    """By broker, the environment of its stack, both running."""
    name = checkout.environ["COMPOSE_PROJECT_NAME"]
    found: dict[str, dict[str, str]] = {"redis": {}, "rabbitmq": of_its_own(f"{name}-next")}
    try:
        for broker, environ in found.items():
            assert checkout.make("up", f"BROKER={broker}", "POOL=threads", **environ).returncode == 0
        yield found
    finally:
        for environ in found.values():
            kill(environ.get("COMPOSE_PROJECT_NAME", name))
            checkout.make("down", "VOLUMES=1", "YES=1", **environ)


def test_another_broker_takes_over(checkout: Checkout, stacks: dict[str, dict[str, str]]) -> None:
    """Results are there, what waits runs there, and it goes back."""
    old, new = stacks["redis"], stacks["rabbitmq"]
    done = checkout.make("send", *MAIL, **old).stdout.strip()
    assert "SUCCESS" in checkout.make("result", f"ID={done}", "WAIT=30", **old).stdout
    checkout.run("docker", "compose", "-p", checkout.environ["COMPOSE_PROJECT_NAME"], "stop", "worker")
    waiting = [checkout.make("send", *MAIL, **old).stdout.strip() for _ in range(3)]
    assert checkout.make("send", *MAIL, "COUNTDOWN=3600", **old).returncode == 0

    moved = checkout.make("migrate", "FROM=redis", "TO=rabbitmq")
    assert moved.returncode == 0
    assert "moved: 3 in celery, 1 that wait for their ETA" in moved.stdout
    for task in (done, *waiting):
        assert "SUCCESS" in checkout.make("result", f"ID={task}", "WAIT=60", **new).stdout
    until("it waits there", lambda: "1 messages wait for their ETA" in checkout.make("status", **new).stdout)
    assert checkout.make("migrate", "FROM=redis", "TO=rabbitmq").stdout.splitlines()[-2] == "moved: nothing"

    back = checkout.make("migrate", "FROM=rabbitmq", "TO=redis")
    assert "moved: 1 that wait for their ETA" in back.stdout
    for task in waiting:
        assert "SUCCESS" in checkout.make("result", f"ID={task}", **old).stdout
    again = checkout.make("send", *MAIL, **old).stdout.strip()
    assert "SUCCESS" in checkout.make("result", f"ID={again}", "WAIT=30", **old).stdout


def test_a_stack_that_does_not_run_is_named(checkout: Checkout) -> None:
    said = checkout.refusal(checkout.make("migrate", "FROM=redis", "TO=rabbitmq"))
    assert "FROM=redis: no such stack runs here" in said
    assert "make up BROKER=redis COMPOSE_PROJECT_NAME=" in said
