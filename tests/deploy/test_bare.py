"""A machine that has what README asks for, and nothing else."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from celery_kit.operate.stacks.images import settings
from tests.deploy.conftest import Checkout
from tests.harness.terminal import Terminal
from tests.harness.waiting import until

#: What README names; git is for the clone.
NEEDED = ("make", "sh", "python3", "git")


@pytest.fixture
def bare(checkout: Checkout, tmp_path: Path) -> Iterator[Checkout]:
    """A checkout typed into where PATH leads to these alone: no docker, no ps, no tail, none of the core utilities."""
    for name in NEEDED:
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    yield Checkout(checkout.folder, {**checkout.environ, "PATH": str(tmp_path)})
    checkout.make("down", "VOLUMES=1", "BROKER=embedded")


def test_every_command_works_where_no_other_program_is(bare: Checkout) -> None:
    """Nothing that works without Docker asks for a program that README does not name."""
    (bare.folder / "status").touch()  # a user's own file stands in no target's way
    try:
        demo = bare.make("demo")
        assert demo.returncode == 0 and demo.stdout.count("SUCCESS") == 10
        assert "no stack runs" in bare.refusal(bare.make("status"))
        assert "no stack runs" in bare.make("down").stdout
        assert "make demo" in bare.make().stdout
        assert bare.make("up", "POOL=solo").returncode == 0
        sent = bare.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')
        assert "SUCCESS" in bare.make("result", f"ID={sent.stdout.strip()}", "WAIT=20").stdout
        assert "consuming" in bare.make("status").stdout
        assert "✗ no Docker client is installed" in bare.make("doctor").stdout
        assert bare.make("dead").stdout == "0 dead letters\n"
        assert re.search(r"^worker1 +process \d+$", bare.make("ps").stdout, re.MULTILINE)
        assert f"Task mail.send_email[{sent.stdout.strip()}] succeeded" in bare.make("logs").stdout
        for words, shown in ((("top",), "consuming"), (("logs", "FOLLOW=1"), "ready.")):
            terminal = Terminal("make", *words, cwd=bare.folder, environ=bare.environ)
            terminal.shows(shown)
            os.killpg(terminal.process.pid, signal.SIGINT)
            until(f"make {words[0]} ends", lambda: terminal.process.poll() is not None, 30)  # noqa: B023
        done = bare.make("down", "VOLUMES=1")
        assert done.stdout == "embedded stack: stopped; its data is deleted\n" and not done.stderr
        assert "no Docker engine answers" in bare.refusal(bare.make("up", "BROKER=redis"))
    finally:
        with suppress(FileNotFoundError):
            (bare.folder / "status").unlink()


#: As a stranger's machine may be; `make engine` on this one has seen to an engine, choose.sh to the stand-in for Debian.
IMAGE, STANDIN, OFFICIAL = "celery-kit-test/bare", "celery-kit/debian:trixie", "debian:trixie-slim"
DOCKERFILE = """
ARG BASE
FROM ${BASE}
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make git python3 python3-venv
"""


@dataclass
class Machine(Checkout):
    """The same, in a container."""

    container: str

    def make(self, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return self.run("docker", "exec", "--workdir", "/celery-kit", self.container, "make", *words, **environ)


@pytest.fixture
def machine(checkout: Checkout) -> Iterator[Machine]:
    """A container with Debian's make, git and Python, and a clone in it that nothing was typed into yet."""
    assert checkout.run("deploy/engine/start.sh").returncode == checkout.run("deploy/images/choose.sh").returncode == 0
    base = OFFICIAL if checkout.run("docker", "image", "inspect", STANDIN).returncode else STANDIN
    build = ["docker", "build", "--quiet", "--tag", IMAGE, "--build-arg", f"BASE={base}", "-"]
    subprocess.run(build, input=DOCKERFILE, text=True, check=True, capture_output=True)
    # What pip needs of this machine to reach a package index, as the builds of images have it.
    given = {"PIP_CERT": settings().get("CA_BUNDLE"), "PIP_CONFIG_FILE": settings().get("PIP_CONF")}
    mounts = [
        word for name, file in given.items() if file for word in ("-v", f"{file}:/run/{name}:ro", "-e", f"{name}=/run/{name}")
    ]
    name = f"celery-kit-bare-{os.getpid()}"
    try:
        subprocess.run(["docker", "run", "--detach", "--name", name, *mounts, IMAGE, "sleep", "infinity"], check=True)
        subprocess.run(["docker", "cp", "-q", str(checkout.folder), f"{name}:/origin"], check=True)
        clone = (
            "cd /origin && rm -rf .venv .env .kit && git init -q && git add . && "
            "git -c user.name=kit -c user.email=kit@example.com commit -qm origin && git clone -q /origin /celery-kit"
        )
        subprocess.run(["docker", "exec", name, "sh", "-c", clone], check=True)
        yield Machine(checkout.folder, checkout.environ, name)
    finally:
        subprocess.run(["docker", "rm", "--force", "--volumes", name], check=False, capture_output=True)


def test_a_machine_with_make_git_and_python_runs_all_of_it(machine: Machine) -> None:
    """README's first command on a fresh clone, and then each that it names for a stack without Docker."""
    missing = machine.run("docker", "exec", machine.container, "sh", "-c", "command -v docker ps pip curl")
    assert not missing.stdout
    demo = machine.make("demo")
    assert demo.returncode == 0 and demo.stdout.count("SUCCESS") == 10 and "FAILURE" not in demo.stdout
    assert machine.make("up").returncode == 0
    sent = machine.make("send", "TASK=mail.send_email", 'ARGS=["a@b.c", "hi"]')
    assert machine.make("result", f"ID={sent.stdout.strip()}", "WAIT=20").stdout.startswith("state     SUCCESS\n")
    assert re.search(r"^worker1@\w+ +prefork +\d+ +consuming ", machine.make("status").stdout, re.MULTILINE)
    assert machine.make("dead").stdout == "0 dead letters\n"
    found = [line for line in machine.make("doctor").stdout.splitlines() if line.startswith("✗")]
    assert found == ["✗ no Docker client is installed: stacks in containers cannot start"]
    assert "ready." in machine.make("logs").stdout
    assert re.search(r"^worker1 +process \d+$", machine.make("ps").stdout, re.MULTILINE)
    done = machine.make("down")
    assert done.returncode == 0 and done.stdout == "embedded stack: stopped; its data stays\n"
    assert "no stack runs" in machine.refusal(machine.make("status"))
