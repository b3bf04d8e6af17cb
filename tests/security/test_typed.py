"""What a user types, or a script types for them, is text to `make`: nothing in it is run."""

import subprocess
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT


@pytest.mark.parametrize("name", ["TASK", "ARGS", "SCALE", "BROKER"])
def test_what_is_typed_reaches_the_command_as_it_is(tmp_path: Path, name: str) -> None:
    more, ran = tmp_path / "more.mk", tmp_path / "ran"
    more.write_text(f"shown:\n\tprintenv {name}\n")
    given = f"""["$(shell touch {ran})", "${{HOME}}", "$$x", "`touch {ran}`", 'it', "a#b"]"""
    shown = subprocess.run(
        ["make", "-s", "-f", "Makefile", "-f", str(more), "shown", f"{name}={given}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout == f"{given}\n"
    assert not ran.exists()


@pytest.mark.parametrize("name", ["CELERY", "PYTHON", "IMAGE"])
def test_a_name_that_recipes_use_is_not_run(tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    subprocess.run(["make", "env", f"{name}=$(touch {ran});touch {ran}"], cwd=ROOT, capture_output=True, check=False)
    subprocess.run(
        ["make", "env"], cwd=ROOT, capture_output=True, check=False, env={"PATH": "/usr/bin:/bin", name: f"$(touch {ran})"}
    )
    assert not ran.exists()


def test_the_folder_of_a_checkout_is_its_users_alone() -> None:
    """It has passwords, data and logs."""
    subprocess.run(["make", "env"], cwd=ROOT, capture_output=True, check=True)
    assert (ROOT / ".kit").stat().st_mode & 0o777 == 0o700
