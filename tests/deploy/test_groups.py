"""Worker groups, as a user types them: in containers and without Docker, from the same table."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout
from tests.deploy.test_embedded import NO_DOCKER
from tests.deploy.test_stacks import containers
from tests.harness.combinations import one_of
from tests.harness.waiting import until

TABLE = """
[groups.mail]
queues = ["mail"]
pool = "gevent"
concurrency = 7
scale = {min = 2, max = 4}
target_wait = 60
time_limit = 60

[groups.images]
queues = ["images", "celery"]
pool = "prefork"
concurrency = 1
time_limit = 900
memory = "300m"
cpus = 0.5
max_tasks_per_child = 1
"""
#: Who runs a task: the worker's name, its pool's class, and the process.
WHERE = """
import os
from celery import current_app, shared_task

@shared_task(bind=True, time_limit=30)
def mail(self):
    return [self.request.hostname, os.environ["POOL"], os.getpid()]

@shared_task(bind=True, time_limit=30)
def images(self):
    return [self.request.hostname, os.environ["POOL"], os.getpid()]
"""
ROUTES = """
task_routes = {"where.mail": {"queue": "mail"}, "where.images": {"queue": "images"}, "where.lost": {"queue": "lost"}}
"""


@pytest.fixture
def grouped(checkout: Checkout) -> Iterator[Checkout]:
    """A checkout with the table and two tasks in the queues of its groups; afterwards the stack is gone, and so are they."""
    table, tasks, config = (checkout.folder / name for name in ("app/workers.toml", "app/tasks/where.py", "app/config.py"))
    before = config.read_text()
    table.write_text(TABLE)
    tasks.write_text(WHERE)
    config.write_text(before + ROUTES)
    try:
        yield checkout
    finally:
        checkout.make("down")
        config.write_text(before)
        table.unlink(missing_ok=True)
        tasks.unlink(missing_ok=True)


def ran(checkout: Checkout, task: str) -> tuple[str, str, int]:
    """The worker, the pool and the process that a task ran in."""
    sent = checkout.make("send", f"TASK={task}", "WAIT=30")
    assert "state     SUCCESS" in sent.stdout
    worker, pool, process = json.loads(re.findall(r"^value +(.*)$", sent.stdout, re.MULTILINE)[0])
    return worker, pool, process


def every_route_is_as_the_table_says(checkout: Checkout) -> None:
    """Several of each, because a worker of the wrong group would take only some of them."""
    mails = {ran(checkout, "where.mail") for _ in range(3)}
    images = {ran(checkout, "where.images") for _ in range(3)}
    assert {(worker.partition("@")[0].rstrip("-0123456789"), pool) for worker, pool, _ in mails} == {("mail", "gevent")}
    assert {(worker.partition("@")[0].rstrip("-0123456789"), pool) for worker, pool, _ in images} == {("images", "prefork")}
    assert len({process for *_, process in images}) == 3, "max_tasks_per_child = 1: each task has a child of its own"


def status_and_doctor_know_the_groups(checkout: Checkout) -> None:
    def both_consume() -> str:
        said = checkout.make("status").stdout
        return said if "2 of 2-4" in said else ""

    shown = until("both workers consume", both_consume, 60)
    assert re.search(r"^mail +gevent +2 of 2-4 +mail +60 s$", shown, re.MULTILINE)
    assert re.search(r"^images +prefork +1 of 1 +images,celery +-$", shown, re.MULTILINE)
    assert len(re.findall(r"^mail(?:-\d)?@\S+ +gevent +7 +consuming +mail ", shown, re.MULTILINE)) == 2
    assert re.search(
        r"^images(-1)?@\S+ +prefork +1 +consuming +celery,images |^images(-1)?@\S+ .* images,celery ", shown, re.MULTILINE
    )
    assert "group" not in checkout.make("doctor").stdout
    table = checkout.folder / "app/workers.toml"
    try:
        table.write_text(TABLE.replace("time_limit = 900", "time_limit = 800") + '[groups.new]\nqueues = ["new"]\n')
        said = checkout.make("doctor").stdout
        assert "group images runs with another time_limit than app/workers.toml says" in said
        assert "group new of app/workers.toml does not run" in said
        table.write_text("[groups.images]\n")
        assert "app/workers.toml: groups.images.queues is missing" in checkout.make("doctor").stdout
    finally:
        table.write_text(TABLE)


def logs_are_those_of_one_group(checkout: Checkout) -> None:
    everything, one = checkout.make("logs").stdout, checkout.make("logs", "GROUP=images").stdout
    assert "worker-mail" in everything and "worker-images" in everything
    assert "worker-images" in one and "worker-mail" not in one and "beat" not in one
    assert "GROUP=image is not known; allowed: images, mail" in checkout.refusal(checkout.make("logs", "GROUP=image"))


@pytest.mark.parametrize("broker", one_of(SERVERS))
def test_each_queue_runs_on_its_group_in_containers(grouped: Checkout, broker: str) -> None:
    up = grouped.make("up", f"BROKER={broker}", "POOL=solo", "QUEUES=lost")
    assert up.returncode == 0
    assert f"{broker}, mail on gevent, images on prefork, results by redis: running and healthy" in up.stdout
    assert "app/workers.toml comes first: POOL=solo holds for no group; QUEUES=lost holds for no group" in up.stderr
    limits = "its time_limit and the time limit of where.mail"
    assert f"Groups: mail on gevent, {limits}: the task goes on to its end" in up.stdout
    assert "consumes" not in up.stdout, "each queue has a group"
    every_route_is_as_the_table_says(grouped)
    status_and_doctor_know_the_groups(grouped)
    logs_are_those_of_one_group(grouped)

    inspected = json.loads(subprocess.run(["docker", "inspect", *containers(grouped)], capture_output=True, check=True).stdout)
    by_service = {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in inspected}
    assert by_service.keys() >= {"worker-mail", "worker-images", "beat", "broker"} and "worker" not in by_service
    images, mail = by_service["worker-images"], by_service["worker-mail"]
    assert (images["HostConfig"]["Memory"], images["HostConfig"]["NanoCpus"]) == (300 * 2**20, 500_000_000)
    assert (images["Config"]["StopTimeout"], mail["Config"]["StopTimeout"]) == (930, 90)
    assert images["State"]["Health"]["Status"] == mail["State"]["Health"]["Status"] == "healthy"


def test_up_makes_what_runs_as_the_table_is_now(grouped: Checkout) -> None:
    """A group that is gone is stopped; without the table there is the one worker that was always there, and back again."""
    table = grouped.folder / "app/workers.toml"

    def services() -> list[str]:
        shown = grouped.run(
            "docker", "compose", "-p", grouped.environ["COMPOSE_PROJECT_NAME"], "ps", "--services"
        ).stdout.split()
        return sorted(one for one in shown if one.startswith("worker"))

    table.write_text('[groups.images]\nqueues = ["images"]\npool = "solo"\n')
    up = grouped.make("up", "BROKER=redis")
    assert "Groups: no group of app/workers.toml consumes celery, mail: its tasks wait" in up.stdout
    assert services() == ["worker-images"]
    table.unlink()
    assert grouped.make("up", "BROKER=redis", "POOL=solo").returncode == 0
    assert services() == ["worker"]
    assert "GROUP=images: the stack runs without worker groups" in grouped.refusal(grouped.make("logs", "GROUP=images"))
    table.write_text('[groups.images]\nqueues = ["images"]\npool = "solo"\n')
    assert grouped.make("up", "BROKER=redis").returncode == 0
    assert services() == ["worker-images"]


def test_each_queue_runs_on_its_group_without_docker(grouped: Checkout) -> None:
    up = grouped.make("up", "SCALE=2", **NO_DOCKER)
    assert up.returncode == 0
    assert "embedded, mail on gevent, images on prefork, results by redis: running and healthy" in up.stdout
    assert "app/workers.toml comes first: SCALE=2 holds for images" in up.stderr
    assert "Groups: images: memory and cpus hold in containers alone" in up.stdout
    assert len(re.findall(r"^worker-(?:mail|images)-[12] +process", grouped.make("ps").stdout, re.MULTILINE)) == 4
    every_route_is_as_the_table_says(grouped)


def test_status_doctor_and_logs_know_groups_without_docker(grouped: Checkout) -> None:
    assert grouped.make("up", **NO_DOCKER).returncode == 0
    status_and_doctor_know_the_groups(grouped)
    logs_are_those_of_one_group(grouped)


@pytest.mark.parametrize(
    ("table", "words", "said"),
    [
        ("[groups.a]", [], "app/workers.toml: groups.a.queues is missing; a list of queues"),
        ('[groups.a]\nqueues = ["a"]\npool = "fork"', [], 'groups.a.pool = "fork" is not allowed; one of prefork, eventlet'),
        ('[groups.a]\nqueues = ["a"]\ncpus = 1000', ["BROKER=redis"], "group a: cpus = 1000 is more than this machine has"),
        (TABLE, ["BROKER=redis", "STOP_GRACE_PERIOD=100s"], "STOP_GRACE_PERIOD=100s contradicts TASK_TIME_LIMIT=900"),
        (TABLE, ["BROKER=rabbitmq", "CONSUMER_TIMEOUT=500000"], "CONSUMER_TIMEOUT=500000 contradicts TASK_TIME_LIMIT=900"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_starts(grouped: Checkout, table: str, words: list[str], said: str) -> None:
    (grouped.folder / "app/workers.toml").write_text(table)
    assert said in grouped.refusal(grouped.make("up", *words))
    assert grouped.make("ps").returncode == 2


def test_a_codebase_has_its_own_table(checkout: Checkout, tmp_path: Path) -> None:
    """It stands in SOURCE, and the queues of the app's own routes are known."""
    shop = tmp_path / "shop"
    checkout.run("cp", "-R", str(ROOT / "examples/shop"), str(shop))
    (shop / "workers.toml").write_text('[groups.pay]\nqueues = ["payments"]\npool = "threads"\n')
    up = checkout.make("up", "APP=shop.celery:app", f"SOURCE={shop}", **NO_DOCKER)
    try:
        assert f"Groups: no group of {shop}/workers.toml consumes reports, shop: its tasks wait" in up.stdout
        assert re.search(r"^pay +threads +1 of 1 +payments", checkout.make("status").stdout, re.MULTILINE)
    finally:
        checkout.make("down")


def test_a_codebase_runs_in_groups_of_containers(checkout: Checkout, tmp_path: Path) -> None:
    """An image of its code for each pool. What a task of a group's queue asks for and does not get there is said.

    With SECURE, also the container that describes the app needs the certificates.
    """
    shop = tmp_path / "shop"
    checkout.run("cp", "-R", str(ROOT / "examples/shop"), str(shop))
    (shop / "workers.toml").write_text(
        '[groups.pay]\nqueues = ["payments"]\npool = "threads"\n[groups.rest]\nqueues = ["shop", "reports"]\npool = "solo"\n'
    )
    up = checkout.make("up", "BROKER=redis", "SECURE=1", "APP=shop.celery:app", f"SOURCE={shop}")
    try:
        assert "redis, pay on threads, rest on solo, results by redis, shop.celery:app: running and healthy" in up.stdout
        said = re.findall(r"^Groups: (.*)$", up.stdout, re.MULTILINE)
        assert len(said) == 1 and said[0].startswith(
            "pay on threads, the time limit of payments.charge: the task is ended as soon"
        )
        shown = checkout.make("status").stdout
        assert re.search(r"^pay +threads +1 of 1 +payments", shown, re.MULTILINE)
        assert re.search(r"^rest +solo +1 of 1 +shop,reports", shown, re.MULTILINE)
        assert "payments.charge" in shown
    finally:
        checkout.make("down")
