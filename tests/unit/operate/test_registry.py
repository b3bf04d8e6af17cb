"""What `make push` writes into images and reads back from its file; the pushes themselves: tests/deploy/test_registry.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.refusals import unless_refused
from celery_kit.operate.stacks import registry
from celery_kit.operate.stacks.registry import labels, pinned, pins

DIGEST = f"sha256:{'a' * 64}"


def git(folder: Path, *words: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    environ = {**os.environ, "GIT_COMMITTER_DATE": "2020-01-02T03:04:05Z"}
    done = subprocess.run(["git", "-C", folder, *own, *words], capture_output=True, text=True, check=True, env=environ)
    return done.stdout.strip()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with a commit, a tag and an origin whose address has a password."""
    git(tmp_path, "init", "--quiet")
    (tmp_path / "one.py").touch()
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    git(tmp_path, "tag", "v7")
    git(tmp_path, "remote", "add", "origin", "https://kit:secret@example.com/shop.git")
    return tmp_path


def test_labels_are_those_of_the_commit_and_without_a_password(folder: Path) -> None:
    """Twice the same, so that a second push of a commit is the same image."""
    found = labels(folder, "")
    assert found == labels(folder, "")
    assert found["revision"] == git(folder, "rev-parse", "HEAD")
    assert (found["version"], found["source"]) == ("v7", "https://example.com/shop.git")
    assert found["created"] == git(folder, "log", "-1", "--format=%cI")
    assert labels(folder, "1.4")["version"] == "1.4"


def test_changes_that_are_not_committed_are_said(folder: Path) -> None:
    (folder / "one.py").write_text("changed = True\n")
    found = labels(folder, "")
    assert found["revision"].endswith("-dirty") and found["version"].endswith("-dirty")
    assert found["created"] != git(folder, "log", "-1", "--format=%cI")


def test_a_folder_without_git_has_a_version_if_one_is_given(tmp_path: Path) -> None:
    assert labels(tmp_path, "1.4").keys() == {"version", "created"}
    assert labels(tmp_path, "").keys() == {"created"}


def test_pins_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "pins.json"
    file.write_text(json.dumps({"images": {"solo": f"127.0.0.1:1/shop:solo@{DIGEST}"}}))
    found = pins(str(file))
    assert pinned(found, "solo", "pins.json") == f"127.0.0.1:1/shop:solo@{DIGEST}"
    _, why = unless_refused(lambda: pinned(found, "gevent", "pins.json"))
    assert why.startswith("PINS=pins.json has no image gevent; it has solo: ")
    assert pins("") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("", "is not a file of 'make push'"),
        ("[]", "is not a file of 'make push'"),
        ("{}", "is not a file of 'make push'"),
        ('{"images": []}', "is not a file of 'make push'"),
        ("[" * 100_000, "is not a file of 'make push'"),
        ('{"images": {"solo": "shop:solo"}}', "has 'shop:solo', which is no image with a digest"),
        ('{"images": {"solo": 5}}', "has '5', which is no image with a digest"),
        (json.dumps({"images": {"solo": f"${{HOME}}@{DIGEST}"}}), "which is no image with a digest"),
        (json.dumps({"images": {"solo": f"shop:solo@{DIGEST}\n"}}), "which is no image with a digest"),
    ],
)
def test_pins_that_are_wrong_are_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "pins.json"
    if text is not None:
        file.write_text(text)
    _, why = unless_refused(lambda: pins(str(file)))
    assert said in why and "\n" not in why


@pytest.mark.parametrize(
    ("shown", "wanted", "said"),
    [
        ("Platforms: linux/amd64, linux/386\n", ["linux/amd64"], ""),
        ("Platforms: linux/amd64*, linux/arm64\n", ["linux/amd64", "linux/arm64"], ""),
        (
            "Platforms: linux/amd64\n",
            ["linux/arm64"],
            "PLATFORMS=linux/arm64: emulation is missing, this engine builds for linux",
        ),
        ("", ["amd64"], "PLATFORMS=amd64 is not allowed"),
        (None, ["linux/arm64"], "PLATFORMS needs buildx: no such command"),
        (None, [], ""),
    ],
)
def test_a_platform_that_the_engine_cannot_build_for_is_one_line(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, wanted: list[str], said: str
) -> None:
    done = subprocess.CompletedProcess((), shown is None, shown or "", "no such command")
    monkeypatch.setattr(registry, "run", lambda *_, **__: done)
    _, why = unless_refused(lambda: registry._check_platforms(wanted))
    assert why.startswith(said) and bool(why) == bool(said)
