"""Machines that lack something, and the images that are deployed."""

import json
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from celery_kit.operate.stacks.images import image, python, settings
from celery_kit.operate.stacks.pythons import DEFAULT, PYTHONS
from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.deploy.conftest import Checkout

#: The worker image's own weight beside its base (MB); with the official base of some 120 MB it stays below 200 MB.
OWN_MEGABYTES = 75


def output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("pool", POOLS)
def test_an_image_is_small_and_holds_only_what_runs(pool: str) -> None:
    name = image(pool)
    base = settings()[python().variable]
    size, of_base = (int(output("docker", "image", "inspect", "--format", "{{.Size}}", one)) for one in (name, base))
    assert size - of_base < OWN_MEGABYTES * 1_000_000, f"{size / 1e6:.0f} MB on a base of {of_base / 1e6:.0f} MB"
    look = (
        "id -u; which gcc cc make uv; ls -d /root/.cache/pip /srv/.cache; ls /run/secrets; env | grep -i -E 'pip|cert'; "
        "/opt/venv/bin/python -m pip --version; find /srv/app /opt/venv -name '*.py' -size +0 | head -n 1 >/dev/null; "
        "find /srv/app -name '*.pyc' | head -n 1"
    )
    found = output("docker", "run", "--rm", "--entrypoint", "sh", name, "-c", f"({look}) 2>/dev/null; true").splitlines()
    assert found[0] == "1000"
    assert len(found) == 2 and found[1].endswith(".pyc"), found


@pytest.mark.parametrize("version", [version for version in PYTHONS if version != DEFAULT])
@pytest.mark.parametrize("broker", SERVERS)
def test_every_image_of_a_stack_has_the_python_that_was_chosen(checkout: Checkout, broker: str, version: str) -> None:
    """As Compose reads its files; `make test-matrix PYTHON=` runs such images, where the machine can have them."""
    told = PYTHONS[version].environ({})
    done = checkout.run(
        "docker", "compose", "-f", f"compose.{broker}.yaml", "--profile", "monitor", "config", "--format", "json", **told
    )  # fmt: skip
    built = {name: one for name, one in json.loads(done.stdout)["services"].items() if "build" in one or name == "exporter"}
    assert sorted(built) == ["beat", "exporter", "flower", "mail", "worker"]
    assert all(one["image"].endswith(f"-py{version}") for one in built.values())
    bases = {one["build"]["args"]["PYTHON_IMAGE"] for one in built.values() if "build" in one}
    assert bases == {f"python:{version}-slim-trixie"}


def test_a_python_that_no_image_has_is_refused(checkout: Checkout) -> None:
    assert "PYTHON=2.7 is not known; allowed: 3.12, 3.13, 3.14" in checkout.refusal(checkout.make("images", "PYTHON=2.7"))


def test_an_image_without_a_broker_says_what_it_needs() -> None:
    done = subprocess.run(["docker", "run", "--rm", image("solo")], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "celery-kit: the embedded broker does not run: "
        "start it with 'make up', or name another with BROKER= or CELERY_BROKER_URL"
    ]


def test_no_engine_and_not_root_is_one_line(checkout: Checkout) -> None:
    """As the user nobody, with an address at which no engine answers."""
    script = Path(checkout.folder / "deploy/engine/start.sh").read_text()
    drop = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"] if os.getuid() == 0 else []
    done = checkout.run(*drop, "sh", "-c", script, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert "no Docker engine answers, and only root can install or start one" in checkout.refusal(done)


def test_an_engine_that_hangs_is_one_line(checkout: Checkout, tmp_path: Path) -> None:
    """Every question to the engine has a time limit: a socket takes connections here, and nobody answers."""
    with socket.socket(socket.AF_UNIX) as engine, ThreadPoolExecutor() as pool:
        engine.bind(str(tmp_path / "engine.sock"))
        engine.listen(100)
        silent = {"DOCKER_HOST": f"unix://{tmp_path}/engine.sock"}
        commands = ("status", "ps", "down", "up BROKER=redis", "images", "engine")
        for done in pool.map(lambda command: checkout.make(*command.split(), **silent), commands):
            assert "the Docker engine does not answer within " in checkout.refusal(done)
        assert "✗ the Docker engine does not answer within " in checkout.make("doctor", **silent).stdout


@pytest.mark.parametrize("answer", ["", "what?", "{"])
def test_an_engine_that_answers_nonsense_is_no_error_of_the_program(checkout: Checkout, tmp_path: Path, answer: str) -> None:
    """A script answers in place of Docker's client, which cannot be had so broken: all is well, it says, and nothing of use."""
    (tmp_path / "docker").write_text(f"#!/bin/sh\necho '{answer}'\n")
    (tmp_path / "docker").chmod(0o755)
    broken = {"PATH": f"{tmp_path}:{checkout.environ['PATH']}"}
    for command in ("status", "ps", "logs", "images POOL=solo", "up BROKER=redis POOL=solo"):
        done = checkout.make(*command.split(), **broken)
        said = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
        assert done.returncode == 2 and len(said) == 1 and said[0].startswith("celery-kit: "), said
    assert "no stack runs" in checkout.make("down", "VOLUMES=1", **broken).stdout
    assert "✗ no Docker engine answers (" in checkout.make("doctor", **broken).stdout


def test_an_old_python_is_one_line(checkout: Checkout, tmp_path: Path) -> None:
    """A script answers in place of an interpreter of 2020, which cannot be had everywhere."""
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\n[ "$1" = -V ]\n')
    old.chmod(0o755)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "deploy").mkdir()
    for name in ("requirements/local.txt", "deploy/env.sh"):
        (tmp_path / name).write_bytes((checkout.folder / name).read_bytes())
    done = checkout.run("sh", str(tmp_path / "deploy/env.sh"), "local", PYTHON=str(old))
    assert "is not Python 3.11 or later (Python 3.9.2)" in checkout.refusal(done)


def test_the_integration_tests_fail_clearly_without_an_engine(checkout: Checkout) -> None:
    done = checkout.run(
        ".venv/bin/pytest", "-q", "tests/integration", "-k", "mail", DOCKER_HOST="unix:///nonexistent/docker.sock"
    )
    assert done.returncode == 2
    assert "no Docker engine answers, and these tests need one: run 'make engine' first" in done.stdout
    assert "passed" not in done.stdout and "skipped" not in done.stdout


def test_a_container_that_is_stopped_while_it_starts_ends_at_once() -> None:
    """Its first process hears SIGTERM before Celery has a handler for it."""
    look = "import os, signal, app; os.kill(1, signal.SIGTERM); signal.pause()"
    done = subprocess.run(
        ["docker", "run", "--rm", "-e", "CELERY_BROKER_URL=redis://127.0.0.1:1/0", image("solo"), "python", "-c", look],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
