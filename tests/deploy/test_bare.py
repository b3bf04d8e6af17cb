"""A machine that has what README asks for, and nothing else."""

import os
import re
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.deploy.conftest import Checkout
from tests.terminal import Terminal
from tests.wait import until

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
        assert bare.make("dead").stdout == "0 set aside\n"
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
