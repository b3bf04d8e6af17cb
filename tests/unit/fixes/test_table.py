"""Each patch of upstream says when it can go: by a test that is there."""

import re
from pathlib import Path

import pytest

from celery_kit import fixes
from celery_kit.base.target import ROOT

FIXES = sorted(path for path in Path(fixes.__path__[0]).glob("*.py") if path.stem != "__init__")


def named(text: str) -> list[tuple[str, str]]:
    """The tests that a file names: file and function, or an empty one."""
    return re.findall(r"(?<![\w/])(tests/[\w/]+\.py)(?:::(\w+))?", text)


@pytest.mark.parametrize("path", FIXES, ids=lambda path: path.stem)
def test_the_test_that_says_when_it_can_go(path: Path) -> None:
    """A file of celery_kit/fixes names the versions that it is for, and a test."""
    text = path.read_text()
    assert named(text), "no test"
    assert re.search(r"\b(Celery|kombu|redis-py|celery|billiard|eventlet) \d+\.\d+", text), "no version"


def test_every_test_that_the_code_names_is_there() -> None:
    seen = [(path, *test) for path in sorted((ROOT / "celery_kit").rglob("*.py")) for test in named(path.read_text())]
    assert len(seen) > len(FIXES)
    for path, file, test in seen:
        assert (ROOT / file).exists(), f"{path.name}: {file} is not there"
        assert not test or re.search(rf"def {test}\b", (ROOT / file).read_text()), f"{path.name}: {file}::{test} is not there"
