"""The table of fixes: each row says what it is for, and when it can go."""

import ast
import logging
import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import pytest
from celery import Celery
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from celery_kit import fixes
from celery_kit.base import versions
from celery_kit.base.target import ROOT
from celery_kit.fixes import FIXES, PARTS, Fix

#: By lock: the versions that the kit is tested with.
LOCKS = {
    lock: dict(re.findall(r"^([\w-]+)==([\w.!]+)", (ROOT / f"requirements/{lock}.txt").read_text(), re.MULTILINE))
    for lock in ("dev", "celery-5.6", "celery-5.5")
}
FILES = {path.stem for path in Path(fixes.__path__[0]).glob("*.py")} - {"__init__"}


def rows() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", FIXES.values(), ids=lambda row: row.name)


@rows()
def test_the_test_that_says_when_it_can_go(row: Fix) -> None:
    """It is there, and names the fix."""
    file, _, test = row.test.partition("::")
    text = (ROOT / file).read_text()
    assert re.search(rf"\b{row.name}\b", text), f"{file} does not name {row.name}"
    assert not test or re.search(rf"def {test}\b", text), f"{row.test} is not there"


@rows()
def test_a_reference_is_an_issue_or_a_source_file_with_its_version(row: Fix) -> None:
    assert re.fullmatch(r"https://\S+/(issues|pull)/\d+|[\w/]+\.py \d+\.\d+\.\d+(, [\w. ]+)?", row.reference)


@pytest.mark.parametrize("row", [*FIXES.values(), *PARTS.values()], ids=lambda row: row.name)
def test_needs_are_specifiers_that_the_locked_versions_meet(row: Fix | fixes.Part) -> None:
    """Of a fault that is closed by now: those of a lock for an earlier Celery."""
    meet = {lock for lock in LOCKS if locked(lock, row.needs)}
    closed = getattr(row, "closed", {})
    assert row.needs and meet and ("dev" in meet) != (bool(closed) and locked("dev", closed))


def locked(lock: str, versions: Mapping[str, str]) -> bool:
    pins = LOCKS["dev"] | LOCKS[lock]
    return all(pins[name] in SpecifierSet(which) for name, which in versions.items())


@rows()
def test_what_is_connected_is_there(row: Fix) -> None:
    module, _, name = row.where.partition(":")
    assert hasattr(import_module(module), name)


def test_every_file_has_a_row_and_every_row_that_is_used_by_name_is_asked_for() -> None:
    assert {row.where.split(":")[0].rpartition(".")[2] for row in FIXES.values() if ".fixes." in row.where} >= FILES
    code = "".join(path.read_text() for path in (ROOT / "celery_kit").rglob("*.py") if path.parent.name != "fixes")
    used = [row.name for row in FIXES.values() if row.at == "use"] + list(PARTS)
    assert not [name for name in used if f'"{name}"' not in code]


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Celery 9 is installed."""
    true = versions.installed

    def installed(package: str) -> Version | None:
        return Version("9.0") if package == "celery" else true(package)

    monkeypatch.setattr(versions, "installed", installed)
    monkeypatch.setattr(fixes, "installed", installed)
    fixes.needed.cache_clear()
    yield
    fixes.needed.cache_clear()


@pytest.mark.usefixtures("newer")
def test_a_version_outside_of_its_row_leaves_a_fix_out_and_says_so_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    app = Celery("some", set_as_current=False)
    fixes.connect(app)
    assert FIXES["green_loop"].where not in app.steps["consumer"]
    assert fixes.patched(dict, "abandoned_waits") is dict
    with caplog.at_level(logging.INFO):
        fixes._say()
    (line,) = caplog.messages
    assert "celery 9.0" in line and "green_loop" in line and "hub_stall" not in line
    assert "without dead letters: messages that cannot be run are dropped" in line


def test_with_the_locked_versions_all_are_connected_and_nothing_is_said() -> None:
    app = Celery("some", set_as_current=False)
    fixes.connect(app)
    assert FIXES["green_loop"].where in app.steps["consumer"]
    assert fixes.left_out() == ""


def test_every_test_that_the_code_names_is_there() -> None:
    named = re.compile(r"(?<![\w/])(tests/[\w/]+\.py)(?:::(\w+))?")
    seen = [(path, *test) for path in sorted((ROOT / "celery_kit").rglob("*.py")) for test in named.findall(path.read_text())]
    assert len(seen) > len(FIXES)
    for path, file, test in seen:
        assert (ROOT / file).exists(), f"{path.name}: {file} is not there"
        tests = {one.name for one in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(one, ast.FunctionDef)}
        assert not test or test in tests, f"{path.name}: {file}::{test} is not there"
