"""`celery-kit`, the tools for any project's app."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from celery_kit.operate.script import COMMANDS, MODULES

SHOP = "import celery\napp = celery.Celery('shop', broker='memory://', backend='cache+memory://')\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(SHOP)
    return tmp_path


def script(project: Path, *argv: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "CELERY_APP": "", **environ}
    whole = [sys.executable, "-m", "celery_kit.operate.script", *argv]
    return subprocess.run(whole, cwd=project, env=environ, capture_output=True, text=True, check=False)


def test_every_command_has_its_module() -> None:
    assert all(find_spec(f"celery_kit.operate.look.{MODULES.get(command, command)}") for command in COMMANDS)


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_broker_that_the_kit_does_not_know_pauses_nothing(project: Path, command: str) -> None:
    ran = script(project, "--app", "shop", command, "mail")
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "no queue of this broker can be paused" in ran.stderr


@pytest.mark.parametrize("named", [("--app", "shop"), ("-A", "shop:app"), ()])
def test_the_status_of_any_projects_app_is_shown(project: Path, named: tuple[str, ...]) -> None:
    """By --app, or by CELERY_APP."""
    ran = script(project, *named, "status", CELERY_APP="" if named else "shop")
    assert ran.returncode == 0 and ran.stdout.startswith("broker    memory at memory://"), ran.stdout + ran.stderr


def test_advice_is_what_can_be_typed_there(project: Path) -> None:
    """No `make` where there is no Makefile of the kit's, with and without a Docker engine."""
    (project / "shop.py").write_text(SHOP.replace("memory:", "redis:", 1).replace("//'", "//127.0.0.1:1'", 1))
    silent = {"DOCKER_HOST": "unix:///nowhere"}
    tools: list[tuple[tuple[str, ...], dict[str, str]]] = [
        (("doctor",), {}),
        (("doctor",), silent),
        (("dead",), {}),
        (("result", "x"), {}),
    ]
    for argv, environ in tools:
        ran = script(project, "--app", "shop", *argv, **environ)
        assert "make" not in ran.stdout + ran.stderr and "Traceback" not in ran.stderr, ran.stdout + ran.stderr
    assert "start it, or correct broker_url" in script(project, "--app", "shop", "doctor").stdout


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("status",), "no app is named; give --app"),
        (("--app", "shop"), "required: COMMAND"),
        (("--app", "shop", "stauts"), "COMMAND=stauts is not known; allowed: status, top, "),
        (("--app", "shop", "top", "--every", "often"), "--every: invalid float value: often"),
        (("--app", "shop", "status", "--loud"), "unrecognized arguments: --loud"),
        (("--app", "shop", "dead", "--drop", "x", "--retry", "y"), "contradict each other"),
        (("--app", "shup", "status"), "CELERY_APP=shup cannot be imported (ModuleNotFoundError: No module named 'shup')"),
        (("--app", "os", "status"), "CELERY_APP=os cannot be imported"),
        (("--app", "shop", "send", "shop.task"), "CELERY_APP=shop is plain Celery"),
    ],
)
def test_bad_input_is_one_line(project: Path, argv: tuple[str, ...], said: str) -> None:
    ran = script(project, *argv)
    assert ran.returncode == 2 and not ran.stdout, ran.stdout
    (line,) = ran.stderr.splitlines()
    assert line.startswith("celery-kit: ") and said in line
