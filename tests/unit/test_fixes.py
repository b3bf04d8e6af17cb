"""Each patch of upstream says when it can go: by a test that is there."""

import re
from pathlib import Path

import pytest

from app import fixes
from app.stack import ROOT

FIXES = sorted(path for path in Path(fixes.__path__[0]).glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("path", FIXES, ids=lambda path: path.stem)
def test_the_test_that_says_when_it_can_go(path: Path) -> None:
    """A file of app/fixes names the versions that it is for, and a test that exists."""
    text = path.read_text()
    assert re.search(r"\b(Celery|kombu|redis-py|celery|billiard|eventlet) \d+\.\d+", text), "no version"
    named = re.findall(r"(?<![\w/])(tests/[\w/]+\.py)(?:::(\w+))?", text)
    assert named, "no test"
    for file, test in named:
        assert not test or re.search(rf"def {test}\b", (ROOT / file).read_text()), f"{file}::{test} is not there"
        assert (ROOT / file).exists(), f"{file} is not there"
