"""The table of Pythons, the names that follow from it, and the files that name its default."""

import os
import platform
import re
import subprocess
from pathlib import Path

import pytest

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image
from celery_kit.operate.stacks.pythons import DEFAULT, PYTHONS, STANDINS, Python, chosen, on_this_machine

OTHERS = [one for one in PYTHONS.values() if one.version != DEFAULT]
COMPOSE = sorted(file for file in (ROOT / "deploy/compose").glob("*.yaml") if "build:" in file.read_text())


def test_the_default_is_told_to_nobody() -> None:
    """Its images have the names that they had before there was a choice, and a base image that the user named stands."""
    assert PYTHONS[DEFAULT].environ({"PYTHON_IMAGE": "mine"}) == {}
    assert (PYTHONS[DEFAULT].tag, PYTHONS[DEFAULT].variable) == ("", "PYTHON_IMAGE")


def test_images_of_two_versions_never_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for version in PYTHONS:
        monkeypatch.setenv("PYTHON", version)
        names |= {image("gevent"), image("mail")}
    assert len(names) == 2 * len(PYTHONS)
    assert len({one.variable for one in PYTHONS.values()}) == len(PYTHONS)


@pytest.mark.parametrize("one", OTHERS, ids=lambda one: str(one.version))
def test_another_version_has_a_base_image_of_its_own(one: Python) -> None:
    """The user's, or the one that was found for it; never the default's, under a name that says otherwise."""
    found = one.environ({"PYTHON_IMAGE": "the default's", one.variable: "its own"})
    assert found == {"PYTHON_IMAGE": "its own", "PYTHON_TAG": f"-py{one.version}"}
    assert one.environ({"PYTHON_IMAGE": "the default's"})["PYTHON_IMAGE"] == f"python:{one.version}-slim-trixie"


def test_variables_are_names_that_a_shell_can_have() -> None:
    assert [PYTHONS[version].variable for version in ("3.12", "3.14")] == ["PYTHON_IMAGE_3_12", "PYTHON_IMAGE_3_14"]


@pytest.mark.parametrize("given", ["", "python3.14", "/usr/bin/python3.14"])
def test_an_interpreter_says_nothing_of_images(given: str) -> None:
    assert chosen({"PYTHON": given}) == chosen({}) == PYTHONS[DEFAULT]


def test_a_version_without_a_row_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ("2.7", "3", "3.14.1"):
        with pytest.raises(SystemExit) as ended:
            chosen({"PYTHON": given})
        assert ended.value.code == 2
        assert capsys.readouterr().err == f"celery-kit: PYTHON={given} is not known; allowed: {', '.join(PYTHONS)}\n"


def test_a_stack_without_images_has_the_python_of_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    here = ".".join(platform.python_version_tuple()[:2])
    for given in ("", here, "/usr/bin/python3.14"):
        on_this_machine({"PYTHON": given})
    other = next(version for version in PYTHONS if version != here)
    with pytest.raises(SystemExit) as ended:
        on_this_machine({"PYTHON": other})
    assert ended.value.code == 2
    assert f"PYTHON={other} chooses images, and none is used here: .venv has Python {here};" in capsys.readouterr().err


def test_a_version_that_debian_lacks_is_one_line_without_a_registry(tmp_path: Path) -> None:
    """And leaves no trace. No engine answers here, and so nothing can be pulled."""
    (tmp_path / "deploy/images").mkdir(parents=True)
    script = tmp_path / "deploy/images/choose.sh"
    script.write_bytes((ROOT / "deploy/images/choose.sh").read_bytes())
    one = next(row for row in PYTHONS.values() if not row.debian)
    done = subprocess.run(
        ["sh", str(script), one.version, one.variable, one.debian, ", ".join(STANDINS)],
        env={"PATH": os.environ["PATH"], "DOCKER_HOST": "unix:///nonexistent/docker.sock"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"celery-kit: PYTHON={one.version}: no registry answers, and Debian has no package of it; "
        f"allowed here: {', '.join(STANDINS)}, or an image that you have as {one.variable} in .env\n"
    )
    assert not (tmp_path / ".env").exists()


def test_a_bare_version_is_not_taken_for_an_interpreter(tmp_path: Path) -> None:
    """deploy/env.sh then looks for one itself; here it finds one of 2020, played by a script."""
    for folder in ("bin", "deploy", "requirements"):
        (tmp_path / folder).mkdir()
    (tmp_path / "deploy/env.sh").write_bytes((ROOT / "deploy/env.sh").read_bytes())
    (tmp_path / "requirements/local.txt").touch()
    old = tmp_path / "bin/python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2"\n[ "$1" = -V ]\n')
    old.chmod(0o755)
    for tool in ("basename", "cmp", "dirname", "sh"):
        found = next(Path(folder, tool) for folder in os.get_exec_path() if Path(folder, tool).exists())
        (tmp_path / "bin" / tool).symlink_to(found)
    done = subprocess.run(
        ["sh", str(tmp_path / "deploy/env.sh"), "local"],
        env={"PATH": str(tmp_path / "bin"), "PYTHON": "3.14"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("celery-kit: Python 3.11 or later is needed; python3 is Python 3.9.2;")


def test_the_default_stands_in_every_file_that_names_one() -> None:
    """Whoever builds without `make` gets it too."""
    named = {
        "deploy/Dockerfile": r"^ARG PYTHON_IMAGE=(\S+)",
        **{str(file.relative_to(ROOT)): r"PYTHON_IMAGE:-(\S+)\}" for file in COMPOSE},
    }
    for file, pattern in named.items():
        assert set(re.findall(pattern, (ROOT / file).read_text(), re.MULTILINE)) == {PYTHONS[DEFAULT].official}, file
    standins = {"deploy/images/choose.sh": r"\$\{1:-([\d.]+)\}", "deploy/images/python/Dockerfile": r"ARG PYTHON=(\S+)"}
    for file, pattern in standins.items():
        assert re.findall(pattern, (ROOT / file).read_text()) == [DEFAULT], file
    about, line = re.findall(r"^# (.*)\n#PYTHON=(\S+)$", (ROOT / ".env.example").read_text(), re.MULTILINE)[0]
    assert line == DEFAULT and all(version in about for version in PYTHONS)
    assert f"suite={PYTHONS[DEFAULT].debian}\n" in (ROOT / "deploy/images/choose.sh").read_text()


@pytest.mark.parametrize("file", COMPOSE, ids=lambda file: str(file.name))
def test_every_image_that_is_built_carries_the_tag_of_its_python(file: Path) -> None:
    ours = re.findall(r"image: \S*\$\{IMAGE:-celery-kit\}\}?:(\S+)", file.read_text())
    tags = [tag.removesuffix("${CELERY:+-celery${CELERY:-}}${APP_VERSION:+-${APP_VERSION:-}}") for tag in ours]
    assert len(tags) == 2 and all(tag.endswith("${PYTHON_TAG:-}") for tag in tags)
