"""The wheel in an environment that holds nothing else but what the examples ask for, made once a run."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from celery_kit.base.target import ROOT
from tests.compat.conftest import places  # noqa: F401
from tests.examples.rig import EXAMPLES
from tests.harness.groups import Grouped


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of that environment, which all processes of a run share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "environment"
    folder.mkdir(exist_ok=True)
    found, made = folder / "venv/bin/python", folder / "made"
    with FileLock(folder / "lock"):
        if not made.exists():
            install(folder, found)
            made.touch()
    return found


def install(folder: Path, python: Path) -> None:
    """Make the environment of an interpreter that is not there yet. `folder`: where pip finds nothing of this repository."""
    subprocess.run(["make", "wheel"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    needed = [word for file in sorted(EXAMPLES.glob("*/requirements.txt")) for word in ("--requirement", str(file))]
    words = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*words, f"{wheel}[gevent]", *needed], cwd=folder, check=True)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    """The tests of an example share its project."""
    found = re.compile(r"\[(\w+)-")
    return Grouped(config, log, lambda nodeid: one[1] if (one := found.search(nodeid)) else nodeid)
