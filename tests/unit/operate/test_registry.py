"""What `make push` writes into images and reads back from its file; the pushes themselves: tests/deploy/test_registry.py."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.refusals import unless_refused
from celery_kit.operate.groups import Group
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


@pytest.mark.parametrize(
    ("name", "tag", "file", "said"),
    [
        ("shop", "", "pins.json", "REGISTRY=shop is not allowed; a host and a name in small letters"),
        ("127.0.0.1:1/Shop", "", "pins.json", "REGISTRY=127.0.0.1:1/Shop is not allowed"),
        ("https://example.com/shop", "", "pins.json", "REGISTRY=https://example.com/shop is not allowed"),
        ("example.com/shop:1", "", "pins.json", "REGISTRY=example.com/shop:1 is not allowed"),
        ("example.com/shop", "a b", "pins.json", "TAG=a b is not allowed; letters, digits, _, . and -, 80 at most"),
        ("example.com/shop", "1.4", "none/pins.json", "none/pins.json cannot be written: No such file or directory"),
    ],
)
def test_a_push_that_cannot_be_is_one_line(tmp_path: Path, name: str, tag: str, file: str, said: str) -> None:
    """Before the engine is asked for anything."""
    _, why = unless_refused(lambda: registry.push(name, tag, (), ("solo",), None, tmp_path / file))
    assert said in why


def test_a_group_with_a_version_has_the_images_of_the_file_of_that_version(tmp_path: Path) -> None:
    """All else has those of the first file."""
    for version in ("1.4", "1.5"):
        images = {tag: f"127.0.0.1:1/shop:{tag}-{version}@{DIGEST}" for tag in ("solo", "mail")}
        (tmp_path / f"{version}.json").write_text(json.dumps({"version": version, "images": images}))
    groups = [Group("a", pool="solo"), Group("b", pool="solo", version="1.5")]
    given = f"{tmp_path}/1.4.json,{tmp_path}/1.5.json"
    found = registry.of_services(given, groups, monitored=False)
    of = {service: image.partition("@")[0].rpartition("-")[2] for service, image in found.items()}
    assert of == {"worker": "1.4", "beat": "1.4", "worker-a": "1.4", "worker-b": "1.5", "mail": "1.4"}
    _, why = unless_refused(lambda: registry.of_services(f"{tmp_path}/1.4.json", groups, monitored=False))
    assert why.startswith(f"group b: PINS={tmp_path}/1.4.json has no version 1.5; it has 1.4; name a file of each")


@pytest.mark.parametrize(
    ("output", "hint"),
    [
        ("unauthorized: authentication required", "; 'docker login example.com' first"),
        (
            "x509: certificate signed by unknown authority",
            "; put the registry's authority into /etc/docker/certs.d/example.com/ca.crt",
        ),
        (
            "http: server gave HTTP response to HTTPS client",
            "; the registry has no TLS: give it some, or name it in insecure-registries",
        ),
        ("no space left on device", ""),
    ],
)
def test_what_a_registry_refuses_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, output: str, hint: str
) -> None:
    done = subprocess.CompletedProcess((), 1, "", f"pushing\n{output}\n")
    monkeypatch.setattr(registry, "run", lambda *_, **__: done)
    ref = "example.com/shop:solo"
    for act, what in ((lambda: registry._push(ref), "pushed"), (lambda: registry.pull([ref]), "pulled")):
        _, why = unless_refused(act)
        assert why.startswith(f"{ref} could not be {what}: {output}{hint}") and "\n" not in why
    _, why = unless_refused(lambda: registry.index(ref, []))
    assert why == f"{ref} could not be made of its platforms: {output}"
