"""`make doctor`: whether a worker's image has the code of this machine."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celery_kit.operate.look.doctor import Scene, images
from celery_kit.operate.stacks import images as built
from celery_kit.operate.stacks.images import Code

WORKER = {
    "Id": "1f2e",
    "Name": "/shop-worker-1",
    "Config": {"Labels": {"com.docker.compose.service": "worker"}},
    "State": {"Running": True},
}


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Code:
    """A user's codebase, and the copy of it that stands for an image."""
    here, inside = tmp_path / "shop", tmp_path / "image"
    for name in ("celery.py", "sub folder/tasks.py", ".venv/lib.py", "db.sqlite3"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    shutil.copytree(here, inside, ignore=shutil.ignore_patterns(".venv", "db.sqlite3"))

    def ask(*argv: str) -> Any:
        assert argv[:3] == ("docker", "exec", WORKER["Id"])
        return subprocess.run(argv[3:], capture_output=True, text=True, check=False)

    monkeypatch.setattr(built, "ask", ask)
    return Code(here, str(inside))


def found(code: Code) -> list[str]:
    return [what for what, _ in images(Scene([], [WORKER], code=(code,)))]


def test_an_image_with_the_code_of_this_machine_is_no_fault(code: Code) -> None:
    assert not found(code)


def test_a_changed_a_new_and_a_deleted_file_of_the_users_are_one(code: Code) -> None:
    fault = [f"shop-worker-1 runs other code than {code.folder}/ holds"]
    tasks, new = code.folder / "sub folder/tasks.py", code.folder / "new.py"
    new.touch()
    assert found(code) == fault
    new.unlink()
    tasks.write_text("other")
    assert found(code) == fault
    tasks.unlink()
    assert found(code) == fault


def test_a_file_that_a_dockerignore_may_leave_out_is_none(code: Code) -> None:
    (code.folder / ".dockerignore").touch()
    (code.folder / "new.py").touch()
    assert not found(code)
    (code.folder / "celery.py").write_text("other")
    assert found(code)


def test_a_container_that_cannot_be_asked_is_none(code: Code) -> None:
    assert not found(Code(code.folder, "/nonexistent"))
