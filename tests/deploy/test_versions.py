"""Versions side by side, as a user types them: what the contract allows runs on images of both, under load."""

import json
import os
import re
import subprocess
from collections.abc import Iterator

import docker
import pytest

from tests.deploy.conftest import Checkout, clone, kill, of_its_own
from tests.harness.waiting import until

#: Seconds under load.
SECONDS = int(os.environ.get("SIDE_BY_SIDE") or 8)
#: Each gives the version that ran it. What differs between the two: an argument that was one of **options has a name, those by
#: position have other names, and one another default.
OLD = """
import os
from celery import shared_task

@shared_task
def charge(order, amount, **options):
    return os.environ["APP_VERSION"]

@shared_task
def refund(order, reason="none", /):
    return os.environ["APP_VERSION"]
"""
NEW = OLD.replace("amount, **options", 'amount, *, currency="EUR", **options').replace(
    'order, reason="none"', 'payment, why=""'
)
BROKEN = OLD.replace("order, amount, **options", "order, currency, amount")
TABLE = """
[groups.old]
queues = ["celery"]
version = "1.0"
[groups.new]
queues = ["celery"]
version = "1.1"
scale = {min = 1, max = 2}
"""
#: Sends all calls that the signatures of the code in this image allow, waits for their results, and begins again.
LOAD = """
import inspect, json, sys, time
from app import app
from celery_kit.operate.contract import calls
app.loader.import_default_modules()
made = [(task, call) for name in ("charge", "refund") for task in [app.tasks[f"billing.{name}"]]
        for call in calls(inspect.signature(task.run))]
until, sent, ran, failed = time.monotonic() + float(sys.argv[1]), 0, {}, []
while time.monotonic() < until:
    results = [task.delay(*call.args, **call.kwargs) for task, call in made for _ in range(20)]
    sent += len(results)
    for result in results:
        try:
            version = result.get(timeout=60)
            ran[version] = ran.get(version, 0) + 1
        except Exception as error:
            failed.append(f"{type(error).__name__}: {error}")
print(json.dumps({"sent": sent, "ran": ran, "failed": len(failed), "why": failed[:3]}))
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout in a repository, with the old code at HEAD and images of its own; afterwards stack and images are gone."""
    checkout = clone(tmp_path_factory.mktemp("versions") / "celery-kit")
    name = f"kit-contract-{os.getpid()}"
    checkout.environ |= of_its_own(name) | {"IMAGE": name}
    (checkout.folder / "app/tasks/billing.py").write_text(OLD)
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (["init", "-q"], ["add", "app", "celery_kit"], [*own, "commit", "-qm", "old"]):
        subprocess.run(["git", *words], cwd=checkout.folder, check=True, capture_output=True)
    try:
        yield checkout
    finally:
        kill(name)
        checkout.make("down", "VOLUMES=1")
        listed = subprocess.run(["docker", "images", "--quiet", name], capture_output=True, text=True, check=False)
        subprocess.run(["docker", "image", "rm", "--force", *listed.stdout.split()], capture_output=True, check=False)


def test_a_break_is_found_before_anything_runs(shop: Checkout) -> None:
    (shop.folder / "app/tasks/billing.py").write_text(BROKEN)
    said = shop.make("contract", "BASE=HEAD")
    assert said.returncode == 2, "make's own code for a recipe that failed"
    assert (
        "old messages → new workers: billing.charge: sent as (order, amount): what is sent as amount by position" in said.stdout
    )
    assert "is no commit of" in shop.refusal(shop.make("contract", "BASE=nothing"))


@pytest.mark.timeout(300 + 2 * SECONDS)
def test_images_of_two_versions_run_each_others_tasks(shop: Checkout) -> None:
    code, table = shop.folder / "app/tasks/billing.py", shop.folder / "app/workers.toml"
    code.write_text(OLD)
    assert shop.make("images", "TAG=1.0", "POOL=threads").returncode == 0
    code.write_text(NEW)
    assert shop.make("contract", "BASE=HEAD").returncode == 0
    assert shop.make("images", "TAG=1.1", "POOL=threads").returncode == 0
    table.write_text(TABLE)
    assert shop.make("up", "BROKER=redis", "POOL=threads").returncode == 0

    def both_consume() -> str:
        said = shop.make("status").stdout
        return said if len(re.findall(r"^(old|new)@\S+ .* consuming ", said, re.MULTILINE)) == 2 else ""

    shown = until("both consume", both_consume, 60)
    assert re.search(r"^old@\S+ +threads .* 1\.0$", shown, re.MULTILINE)
    assert re.search(r"^new@\S+ +threads .* 1\.1$", shown, re.MULTILINE)
    project = shop.environ["COMPOSE_PROJECT_NAME"]
    producers = {
        one: subprocess.Popen(
            ["docker", "exec", "--interactive", f"{project}-worker-{one}-1", "python", "-c", LOAD, str(SECONDS)],
            stdout=subprocess.PIPE, text=True,
        )
        for one in ("old", "new")
    }  # fmt: skip
    found = {one: json.loads(producer.communicate()[0].splitlines()[-1]) for one, producer in producers.items()}
    print(f"{SECONDS} s: {found}")
    for one, load in found.items():
        assert load["failed"] == 0, f"{one}: {load}"
        assert set(load["ran"]) == {"1.0", "1.1"} and sum(load["ran"].values()) == load["sent"] > 100
    assert "runs other code" not in shop.make("doctor").stdout, "that of a version is another by intention"
    label = docker.from_env().containers.get(f"{project}-beat-1").attrs["Config"]["Image"]
    assert label == f"{shop.environ['IMAGE']}:threads-1.0", "beat is of the first group's version"
    table.write_text(TABLE.replace('"1.1"', '"9.9"'))
    said = shop.make("up", "BROKER=redis", "POOL=threads").stderr
    assert f"group new: there is no image {shop.environ['IMAGE']}:threads-9.9" in said and "make images TAG=9.9" in said
    table.unlink()


def test_code_of_a_version_of_its_own_needs_containers(shop: Checkout) -> None:
    table = shop.folder / "app/workers.toml"
    table.write_text(TABLE)
    try:
        said = shop.refusal(shop.make("up", "BROKER=embedded"))
        assert "version of group new needs a stack of containers: BROKER=" in said
    finally:
        table.unlink()
