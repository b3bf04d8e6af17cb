"""What the suites share: groups of a parallel run, what a quick run takes, how `make test` runs its stages."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from testbed.servers import SERVERS
from tests.compat.conftest import group_of as of_compat
from tests.harness.combinations import one_of
from tests.harness.groups import file_and_broker

ONE, OTHER = list(SERVERS)[:2]


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("test_it", "a.py"),
        (f"test_it[{ONE}]", f"a.py {ONE}"),
        (f"test_it[{OTHER}-prefork]", f"a.py {OTHER}"),
        (f"test_it[{ONE}-secure-encryption]", f"a.py {ONE}-secure"),
        (f"test_it[3.14-{ONE}]", f"a.py {ONE}"),
        (f"test_it[no {ONE} at all]", "a.py"),
    ],
)
def test_a_group_has_the_tests_of_a_file_that_share_a_stack(test: str, group: str) -> None:
    assert file_and_broker(f"a.py::{test}") == group


def test_a_group_has_the_tests_of_all_files_that_share_workers() -> None:
    ids = [f"tests/compat/test_{file}.py::test_it[{ONE}+solo-more]" for file in ("basics", "stored")]
    assert {of_compat(one) for one in ids} == {f"{ONE}+solo"}
    ids = [f"tests/compat/test_{file}.py::test_it[{ONE}-rpc-gevent]" for file in ("forks", "results")]
    assert {of_compat(one) for one in ids} == {f"{ONE}-rpc"}


def test_a_quick_run_takes_one_and_another_at_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QUICK", raising=False)
    assert one_of("ab", 1) == ["a", "b"]
    monkeypatch.setenv("QUICK", "1")
    assert [one_of("ab", turn) for turn in range(3)] == [["a"], ["b"], ["a"]] and one_of([]) == []


def test_stages_run_in_turn_until_one_fails_and_how_long_each_took_is_noted(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("one two three:\n\t@echo $@; test $@ != two\n")
    for folder in ("deploy", ".kit"):
        (tmp_path / folder).mkdir()
    script = shutil.copy2(ROOT / "deploy/stages.sh", tmp_path / "deploy")
    done = subprocess.run([script, "one", "two", "three"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.fullmatch(r"one\none +\d+ s\ntwo\n", done.stdout)
    assert re.fullmatch(r"one +\d+ s\n", (tmp_path / ".kit/stages").read_text())
