"""The wheel that `make wheel` builds: celery_kit, whole and alone."""

import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from celery_kit.base.target import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "build", "--quiet", "--offline", "--wheel", "--out-dir", folder], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    assert built.name.endswith("-py3-none-any.whl")
    return ZipFile(built)


def test_it_holds_every_file_of_the_kit_and_no_other(wheel: ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "celery_kit"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = {name for name in wheel.namelist() if not name.endswith("/")}
    about = {name for name in files if ".dist-info/" in name}
    assert files - about == {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert "celery_kit/py.typed" in files and any(name.endswith("licenses/LICENSE") for name in about)


def test_it_needs_what_importing_it_takes_and_brings_a_command(wheel: ZipFile) -> None:
    texts = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name and "." in name}
    needed = [line for line in texts["METADATA"].splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    names = [line.split()[1].partition("=")[0].partition(">")[0] for line in needed]
    assert names == ["amqp", "celery", "kombu", "packaging", "python-json-logger", "redis"]
    assert "celery-kit = celery_kit.operate.script:main" in texts["entry_points.txt"]
