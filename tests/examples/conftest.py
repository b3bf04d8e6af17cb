"""The wheel in an environment that holds nothing else but what the examples ask for, made once a run."""

import subprocess
import sys
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from tests.compat.conftest import places  # noqa: F401
from tests.examples.rig import EXAMPLES


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of that environment."""
    folder = tmp_path_factory.mktemp("environment")
    found = folder / "venv/bin/python"
    subprocess.run(["make", "wheel"], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (wheel,) = (ROOT / "dist").glob("*.whl")
    needed = [word for file in sorted(EXAMPLES.glob("*/requirements.txt")) for word in ("--requirement", str(file))]
    install = [str(found), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, f"{wheel}[gevent]", *needed], cwd=folder, check=True)
    return found
