"""A codebase of the user's own in the stacks, as a user types it. `make test-matrix APP= SOURCE=` takes one that is named."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_kit.operate.stacks.codebase import Codebase
from celery_kit.operate.stacks.images import image
from tests.deploy.conftest import Checkout, clone, kill, of_its_own
from tests.deploy.test_embedded import NO_DOCKER
from tests.harness.combinations import COMBINATIONS, one_of
from tests.harness.terminal import Terminal

#: Plain Celery: no word of the kit, a server that is nowhere, a setting that the kit would not have.
CELERY = """
from celery import Celery

app = Celery("shop", broker="redis://elsewhere/0", include=["shop.tasks"])
app.conf.task_acks_late = False
"""
TASKS = """
import os

import tabulate
from celery import shared_task

@shared_task
def add(a, b):
    return a + b

@shared_task(name="totals")
def totals(rows):
    return tabulate.tabulate(rows, headers=[os.environ["SHOP"]], tablefmt="plain")
"""
REQUIREMENTS = "tabulate==0.9.0 --hash=sha256:024ca478df22e9340661486f85298cff5f6dcdba14f3813e8830015b9ed1948f\n"
#: The apps in it that a test names.
APPS = ("shop.celery:app", "shop.nothing:app", "shop.tasks:tabulate", "wrong.syntax:app")
TOTALS = ("TASK=totals", "ARGS=[[[1, 2], [3, 4]]]")
#: What the user names, as `make test-matrix` hands it on.
GIVEN = {name: os.environ.get(name, "") for name in ("APP", "SOURCE", "REQUIREMENTS", "ENV_FILE", "QUEUES", "TASK", "ARGS")}
PAIRS = [
    pytest.param(one.broker.name, one.pool.name, id=f"{one.broker.name}-{one.pool.name}")
    for one in COMBINATIONS
    if one.backend.name == "redis"
    and (GIVEN["APP"] or (one.broker.name, one.pool.name) in one_of([("redis", "prefork"), ("rabbitmq", "gevent")], 1))
]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder outside of the checkout, with files that only its owner can read. Its images are removed in the end."""
    folder = tmp_path_factory.mktemp("theirs") / "shop"
    files = {
        "shop/__init__.py": "", "shop/celery.py": CELERY, "shop/tasks.py": TASKS, "requirements.txt": REQUIREMENTS,
        ".dockerignore": "secret.txt\n", "secret.txt": "not in an image", "env": "SHOP=corner",
        "wrong/__init__.py": "", "wrong/syntax.py": "def (:",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    yield folder
    for app in APPS:
        name = Codebase(app, folder).name
        listed = subprocess.run(["docker", "images", "--quiet", name], capture_output=True, text=True, check=False)
        subprocess.run(["docker", "image", "rm", "--force", *listed.stdout.split()], capture_output=True, check=False)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A clone with ports and names of its own."""
    checkout = clone(tmp_path_factory.mktemp("checkout") / "celery-kit")
    name = f"celery-kit-codebase-{os.getpid()}"
    checkout.environ |= of_its_own(name)
    try:
        yield checkout
    finally:
        kill(name)
        checkout.make("down", "VOLUMES=1")
        checkout.make("down", "VOLUMES=1", "BROKER=embedded")


def words(shop: Path, **others: str) -> list[str]:
    """What names the codebase, on a command line."""
    named = {"APP": "shop.celery:app", "SOURCE": str(shop), "REQUIREMENTS": str(shop / "requirements.txt")}
    named |= {"ENV_FILE": str(shop / "env"), **others}
    return [f"{name}={value}" for name, value in named.items()]


def layers(name: str) -> list[str]:
    shown = subprocess.run(["docker", "image", "inspect", name], capture_output=True, text=True, check=True).stdout
    return list(json.loads(shown)[0]["RootFS"]["Layers"])


@pytest.mark.parametrize(("broker", "pool"), PAIRS)
def test_a_stack_on_each_runs_the_tasks_of_a_codebase(checkout: Checkout, shop: Path, broker: str, pool: str) -> None:
    own = not GIVEN["APP"]
    named = words(shop) if own else [f"{name}={GIVEN[name]}" for name in list(GIVEN)[:5]]
    up = checkout.make("up", *named, f"BROKER={broker}", f"POOL={pool}")
    try:
        assert up.returncode == 0
        assert f"{broker}, {pool}, results by redis, {named[0].removeprefix('APP=')}: running and healthy" in up.stdout
        status = checkout.make("status").stdout
        assert re.search(rf"^celery@\w+ +{pool} .* consuming ", status, re.MULTILINE)
        assert re.search(r"^tasks     \w", status, re.MULTILINE)
        task = TOTALS if own else (f"TASK={GIVEN['TASK']}", f"ARGS={GIVEN['ARGS'] or '[]'}")
        if own or GIVEN["TASK"]:
            sent = checkout.make("send", *task, "WAIT=60").stdout
            assert "state     SUCCESS" in sent
        if own:
            assert "corner" in sent, "the variable of ENV_FILE is not there"
            assert "tasks     shop.tasks.add, totals" in status
            assert "Settings: broker_url is redis://elsewhere/0 in the app's settings; the stack's own" in up.stdout
            assert "Settings: task_acks_late=False: " in up.stdout
            assert f"at {'amqp' if broker == 'rabbitmq' else 'redis'}://" in status and "@127.0.0.1:" in status
    finally:
        assert checkout.make("down").returncode == 0


def test_an_image_holds_the_code_as_app_is_held_and_is_built_anew_by_its_last_layer(checkout: Checkout, shop: Path) -> None:
    """Read by all, written by nobody, without what .dockerignore names."""
    name = image("solo", Codebase("shop.celery:app", shop))
    builds = checkout.make("images", *words(shop), "POOL=solo")
    assert builds.returncode == 0 and name in builds.stdout
    first = layers(name)
    assert checkout.make("images", *words(shop), "POOL=solo").returncode == 0
    assert layers(name) == first, "nothing changed, and it was built again"
    (shop / "shop/tasks.py").write_text(TASKS + "# changed\n")
    assert checkout.make("images", *words(shop), "POOL=solo").returncode == 0
    assert layers(name)[:-1] == first[:-1] and layers(name)[-1] != first[-1]
    look = "ls; touch shop/new; tail -n 1 shop/tasks.py; stat -c '%U %a' shop/tasks.py; python -c"
    look += " 'import shop.tasks as s; print(s.add)'"
    shown = subprocess.run(["docker", "run", "--rm", name, "sh", "-c", look], capture_output=True, text=True, check=False)
    listed, changed, owner, task = shown.stdout.rsplit("\n", 4)[:4]
    assert listed.split() == ["env", "requirements.txt", "shop", "wrong"] and "Permission denied" in shown.stderr
    assert changed == "# changed" and owner == "root 644" and "shop.tasks.add" in task


def test_without_docker_it_runs_in_its_own_folder(checkout: Checkout, shop: Path) -> None:
    before = sorted(path for path in shop.rglob("*") if "__pycache__" not in str(path))
    up = checkout.make("up", *words(shop), "POOL=threads", **NO_DOCKER)
    try:
        assert up.returncode == 0 and f"code     {shop}, as it is there" in up.stdout
        python = re.findall(r"^  python   (.*)$", up.stdout, re.MULTILINE)[0]
        assert python.startswith(f"{checkout.folder}/.kit/codebases/") and Path(python).exists()
        assert "state     SUCCESS" in checkout.make("send", *TOTALS, "WAIT=30").stdout
        assert "tasks     shop.tasks.add, totals" in checkout.make("status").stdout
        assert "TASK=mail.send_email is not known; allowed: shop.tasks.add, totals" in checkout.refusal(
            checkout.make("send", "TASK=mail.send_email")
        )
        terminal = Terminal("make", "dev", "POOL=solo", cwd=checkout.folder, environ=checkout.environ)
        try:
            terminal.shows(f"watching {shop}")
            terminal.shows("ready.")
        finally:
            os.killpg(terminal.process.pid, 2)
            terminal.process.wait(60)
        after = sorted(path for path in shop.rglob("*") if "__pycache__" not in str(path))
        assert before == after, "something was written into the user's folder"
    finally:
        assert checkout.make("down", **NO_DOCKER).returncode == 0


#: What is named, and what is said of it.
WRONG: list[tuple[dict[str, str], str]] = [
    ({"SOURCE": "/none"}, "SOURCE=/none is no folder"),
    ({"APP": "store:app"}, "has no module store"),
    ({"APP": "shop.nothing:app"}, "cannot be imported (ModuleNotFoundError: "),
    ({"APP": "shop.tasks:tabulate"}, "is no Celery app, but of type module"),
    ({"APP": "wrong.syntax:app"}, "cannot be imported (SyntaxError: "),
    ({"REQUIREMENTS": ""}, "No module named 'tabulate'; REQUIREMENTS= names its packages"),
    ({"REQUIREMENTS": "celery==5.6.3"}, "asks for celery==5.6.3, the kit pins celery==5.7"),
    ({"REQUIREMENTS": "tabulate==99"}, "cannot be installed beside the kit's packages: No matching distribution found"),
]


@pytest.mark.parametrize(
    ("named", "said", "broker"),
    [(*one, broker) for turn, one in enumerate(WRONG) for broker in one_of(["embedded", "redis"], turn)],
)
def test_what_cannot_run_is_one_line_and_nothing_starts(
    checkout: Checkout, shop: Path, tmp_path: Path, named: dict[str, str], said: str, broker: str
) -> None:
    if text := named.get("REQUIREMENTS"):
        (tmp_path / "requirements.txt").write_text(f"{text}\n")
        named = {"REQUIREMENTS": str(tmp_path / "requirements.txt")}
    done = checkout.make("up", *words(shop, **named), f"BROKER={broker}")
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("building ", "setting up ", "make: ***"))]
    assert len(lines) == 1 and lines[0].startswith("celery-kit: ") and said in lines[0]
    assert "no stack runs" in checkout.refusal(checkout.make("ps"))
