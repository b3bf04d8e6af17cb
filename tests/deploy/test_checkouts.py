"""Two checkouts on one engine, and the stacks of one: a command acts on its own checkout's alone, and asks before data goes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.conftest import Checkout, clone, kill
from tests.harness.ports import free_ports
from tests.harness.terminal import Terminal

PORTS = ("REDIS_PORT", "MAIL_PORT")


def asked(checkout: Checkout, word: str) -> str:
    """What the kit itself in a checkout says of its stack: `project_name()` and the like."""
    done = checkout.run(".venv/bin/python", "-c", f"from celery_kit.operate.stacks.compose import *; print({word})")
    return done.stdout.strip()


def listed(kind: str, project: str) -> list[str]:
    """The names of a stack's volumes, or the ids of its containers, as the engine has them."""
    words = {"volumes": ("volume", "ls"), "containers": ("ps", "--all", "--filter", "label=com.docker.compose.oneoff=False")}
    label = f"label=com.docker.compose.project={project}"
    done = subprocess.run(["docker", *words[kind], "--quiet", "--filter", label], capture_output=True, text=True, check=True)
    return sorted(done.stdout.split())


def checkout_in(folder: Path) -> Iterator[Checkout]:
    """A clone whose stack has no name but its own, and nothing left of it at the end."""
    checkout = clone(folder)
    checkout.environ |= dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    project = asked(checkout, "project_name()")
    yield checkout
    kill(project)
    checkout.make("down", "VOLUMES=1")
    checkout.make("down", "VOLUMES=1")
    assert not listed("containers", project) and not listed("volumes", project)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A checkout whose stack runs."""
    for checkout in checkout_in(tmp_path_factory.mktemp("first") / "celery-kit"):
        assert checkout.make("up", "BROKER=redis", "POOL=solo").returncode == 0
        yield checkout


@pytest.fixture
def second(tmp_path: Path) -> Iterator[Checkout]:
    """Another, in a folder of the same name, where none runs."""
    yield from checkout_in(tmp_path / "celery-kit")


def test_no_command_touches_the_stack_of_another_checkout(first: Checkout, second: Checkout) -> None:
    """A stack belongs to the checkout that started it; every command acts on its own, and says whose it found otherwise."""
    project = asked(first, "project_name()")
    before = listed("containers", project), listed("volumes", project)
    assert all(before)
    theirs = f"the stack {project} of the checkout in {first.folder}"
    for command in ("status", "logs", "ps", "dead", "send TASK=mail.send_email", "status BROKER=redis"):
        assert theirs in second.refusal(second.make(*command.split()))
    for words in ((), ("VOLUMES=1",), ("BROKER=redis", "VOLUMES=1")):
        done = second.make("down", *words)
        assert done.returncode == 0 and "no stack runs" in done.stdout and theirs in done.stdout
    assert (listed("containers", project), listed("volumes", project)) == before


def test_a_port_of_another_checkouts_stack_names_its_folder(first: Checkout, second: Checkout) -> None:
    """What stands in the way says whose it is."""
    said = second.refusal(second.make("up", "BROKER=redis", "POOL=solo", REDIS_PORT=first.environ["REDIS_PORT"]))
    assert f"is in use by the stack {asked(first, 'project_name()')} of the checkout in {first.folder}" in said
    found = second.make("doctor", REDIS_PORT=first.environ["REDIS_PORT"]).stdout
    assert f"is in use by the stack {asked(first, 'project_name()')} of the checkout in {first.folder}" in found


def test_a_name_that_another_checkout_has_is_refused(first: Checkout, second: Checkout) -> None:
    """Also where the containers are gone and only its data is left: a volume says whose it is."""
    project = asked(first, "project_name()")
    (second.folder / ".env").write_text(f"{(second.folder / '.env').read_text()}COMPOSE_PROJECT_NAME={project}\n")
    assert f"of the checkout in {first.folder}" in second.refusal(second.make("up", "BROKER=redis", "POOL=solo"))
    assert first.make("down").returncode == 0
    data = listed("volumes", project)
    assert data
    for command in ("up BROKER=redis POOL=solo", "down VOLUMES=1"):
        assert f"of the checkout in {first.folder}" in second.refusal(second.make(*command.split()))
    assert listed("volumes", project) == data
    assert first.make("up", "BROKER=redis", "POOL=solo").returncode == 0
    (second.folder / ".env").write_text((second.folder / ".env").read_text().replace("COMPOSE_PROJECT_NAME", "NOT_READ"))


def test_the_name_in_the_file_of_settings_is_the_stacks(second: Checkout) -> None:
    """COMPOSE_PROJECT_NAME counts wherever Compose itself would read it."""
    (second.folder / ".env").write_text(f"{(second.folder / '.env').read_text()}COMPOSE_PROJECT_NAME=named-{os.getpid()}\n")
    assert asked(second, "project_name()") == asked(second, "Compose().project") == f"named-{os.getpid()}"
    refused = second.refusal(second.make("down", COMPOSE_PROJECT_NAME="My Stack"))
    assert "COMPOSE_PROJECT_NAME=My Stack is not allowed" in refused


def test_a_folder_is_one_checkout_by_whatever_name(second: Checkout, tmp_path: Path) -> None:
    """Through a symbolic link a checkout is the same one."""
    (tmp_path / "link").symlink_to(second.folder)
    named = Checkout(tmp_path / "link", {**second.environ, "PWD": str(tmp_path / "link")})
    assert asked(named, "project_name()") == asked(second, "project_name()")


def test_a_folder_that_was_moved_may_take_its_stack_along(second: Checkout) -> None:
    """The old place's stack is said to be of a folder that is gone, and is this one's if its name is given."""
    project = asked(second, "project_name()")
    words = ("docker", "compose", "-p", project, "-f", "compose.redis.yaml", "up", "--detach", "--no-deps", "broker")
    assert second.run(*words).returncode == 0
    moved = Checkout(second.folder.rename(second.folder.with_name("moved")), second.environ)
    try:
        said = moved.refusal(moved.make("status"))
        assert f"the stack {project} of {second.folder}, now missing ('docker compose -p {project} down' stops it)" in said
        assert "broker" in moved.make("ps", COMPOSE_PROJECT_NAME=project).stdout
        done = moved.make("down", "VOLUMES=1", COMPOSE_PROJECT_NAME=project)
        assert done.stdout == f"stack {project}: stopped; its data is deleted\n"
    finally:
        moved.folder.rename(second.folder)


def test_the_embedded_stacks_data_alone_goes_where_it_is_meant(first: Checkout) -> None:
    """`down` takes the stack of BROKER where it is given, and its data alone."""
    project = asked(first, "project_name()")
    before = listed("containers", project), listed("volumes", project)
    assert first.make("up", "POOL=solo", "BROKER=embedded").returncode == 0
    done = first.make("down", "VOLUMES=1", "BROKER=embedded")
    assert done.returncode == 0 and done.stdout == "embedded stack: stopped; its data is deleted\n"
    assert (listed("containers", project), listed("volumes", project)) == before


def test_a_terminal_is_asked_before_data_goes(first: Checkout) -> None:
    """And named what would go; who says no has lost nothing, who says yes has none left."""
    project = asked(first, "project_name()")
    data = listed("volumes", project)
    terminal = Terminal("make", "down", "VOLUMES=1", cwd=first.folder, environ=first.environ)
    terminal.shows("[y/N]")
    assert all(name in terminal.text for name in data)
    terminal.type("n")
    assert terminal.process.wait(30) == 2
    assert listed("containers", project) and listed("volumes", project) == data
    terminal = Terminal("make", "down", "VOLUMES=1", cwd=first.folder, environ=first.environ)
    terminal.shows("[y/N]")
    terminal.type("y")
    assert terminal.process.wait(120) == 0
    assert not listed("containers", project) and not listed("volumes", project)


@pytest.fixture
def former() -> None:
    """Nobody's stack has the name that all had."""
    if listed("containers", "celery-kit") or listed("volumes", "celery-kit"):
        pytest.skip("this machine has a stack of the name celery-kit, which no test may touch")


@pytest.mark.usefixtures("former")
def test_data_of_the_time_before_is_named_and_left_alone(second: Checkout) -> None:
    """Nobody knows whose a volume is that says no owner: it is named, and goes on where its stack's name is given."""
    labels = ("--label", "com.docker.compose.project=celery-kit", "--label", "com.docker.compose.volume=data")
    second.run("docker", "volume", "create", *labels, "celery-kit_data")
    try:
        up = second.make("up", "BROKER=redis", "POOL=solo")
        assert "older data: of a stack celery-kit" in up.stdout
        assert second.make("down", "VOLUMES=1").returncode == 0
        assert listed("volumes", "celery-kit") == ["celery-kit_data"]
    finally:
        second.run("docker", "volume", "rm", "celery-kit_data")


@pytest.mark.usefixtures("former")
@pytest.mark.parametrize("name", ["", "celery-kit"])
def test_a_stack_that_compose_started_by_itself_is_found(second: Checkout, name: str) -> None:
    """By its folder, whatever its name: Compose takes the folder's, and each was celery-kit before it had one of its own."""
    words = [*(["-p", name] if name else []), "-f", "compose.redis.yaml"]
    try:
        assert second.run("docker", "compose", *words, "up", "--detach", "--no-deps", "broker").returncode == 0
        assert "broker" in second.make("ps").stdout
        done = second.make("down", "VOLUMES=1")
        assert done.stdout == "stack celery-kit: stopped; its data is deleted\n"
        assert not listed("containers", "celery-kit") and not listed("volumes", "celery-kit")
    finally:
        second.run("docker", "compose", *words, "down", "--volumes", "--timeout", "1")
