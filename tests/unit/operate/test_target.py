"""The app that a tool is to look at."""

import sys
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery import _state as celerys_state

from celery_kit.base import target

state: Any = celerys_state  # Celery's stubs know little of it
MODULES = {
    "shop_one.py": "from celery import Celery\napp, other = Celery('one', set_as_current=False), Celery('other')\nnumber = 5\n",
    "shop_none.py": "x = 1\n",
    "shop_broken.py": "raise RuntimeError('no such variable: DATABASE\\nset it')\n",
}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).write_text(text)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(state._tls, "current_app", None)


@pytest.mark.parametrize(("given", "main"), [("shop_one", "one"), ("shop_one:app", "one"), ("shop_one:other", "other")])
def test_an_app_is_found_as_celery_finds_it_and_is_this_processs(given: str, main: str) -> None:
    found = target.find(given)
    assert isinstance(found, Celery) and found.main == main
    assert state.get_current_app() is found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("shop_missing", "No module named 'shop_missing'"),
        ("shop_none", "has no attribute 'celery'"),
        ("shop_one:number", "is no Celery app, but of type int"),
        ("shop_one:nothing", "cannot be imported"),
        ("shop_broken", "RuntimeError: no such variable: DATABASE"),
        (":", "cannot be imported"),
    ],
)
def test_what_is_none_is_refused_in_one_line(given: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was given, and what is allowed."""
    with pytest.raises(SystemExit) as ended:
        target.find(given)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"celery-kit: CELERY_APP={given} ") and said in line and "allowed: a module" in line
