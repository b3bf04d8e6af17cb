"""The codebases in examples/: plain Celery, and what taking the kit changes in them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT

EXAMPLES = sorted(path.parent for path in ROOT.glob("examples/*/kit.patch"))


def code(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted(folder.rglob("*.py")))


def test_there_is_one_of_each_kind() -> None:
    assert [path.name for path in EXAMPLES] == ["django_site", "fastapi_site", "shop"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_taking_the_kit_changes_two_lines(example: Path, tmp_path: Path) -> None:
    copy = tmp_path / example.name
    shutil.copytree(example, copy)
    before = code(copy)
    assert "celery_kit" not in before and "celery" in (copy / "requirements.txt").read_text()
    subprocess.run(["git", "apply", "kit.patch"], cwd=copy, check=True)
    was, now = set(before.splitlines()), set(code(copy).splitlines())
    assert len(was - now) <= 2 and len(now - was) <= 2 and "celery_kit" in code(copy)
