"""The papers of an image: on small images, in files as the engine saves them. A script answers in place of Docker's client."""

import base64
import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from cyclonedx.validation.json import JsonStrictValidator

from deploy.supply import __main__ as commands
from deploy.supply import archive, audit, statement
from deploy.supply.archive import Image, read
from deploy.supply.packages import UNNAMED, packages
from deploy.supply.sbom import SCHEMA, licences, sbom
from deploy.supply.twice import differences

RECORD = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.41-1)
Version: 2.41-12
Homepage: https://www.gnu.org/software/libc/
Description: a library
 of many lines

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1

Package: libgcc-s1
Status: install ok installed
Architecture: amd64
Version: 14.2.0-19

Package: old
Status: install ok installed
Architecture: all
Version: 1:2
"""
COPYRIGHT = """Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/

Files: *
Copyright: them
License: LGPL-2.1+ and Expat

Files: x
Copyright: him
License: GPL-3 or Artistic
"""
METADATA = """Metadata-Version: 2.4
Name: Some.Package
Version: 1.0
License-Expression: Apache-2.0 OR MIT
Home-page: https://example.com
"""
BUNDLED = {
    "components": [
        {"name": "some-package", "version": "1.0", "purl": "pkg:pypi/some-package@1.0"},
        {"name": "zlib", "version": "1.3", "purl": "pkg:generic/zlib@1.3", "licenses": [{"license": {"id": "Zlib"}}]},
    ]
}
INFO = "opt/venv/lib/python3.13/site-packages/some_package-1.0.dist-info"
#: The files of a small image that has everything that is looked for.
FILES = {
    "etc/os-release": 'ID=debian\nVERSION_ID="13"\n',
    "var/lib/dpkg/status": RECORD,
    "usr/share/doc/libc6/copyright": COPYRIGHT,
    "usr/share/doc/libgcc-s1": "-> gcc-14-base",
    "usr/share/doc/gcc-14-base/copyright": "See /usr/share/common-licenses/GPL-3, or GPL.",
    "usr/local/include/python3.13/patchlevel.h": '#define PY_VERSION              "3.13.9"\n',
    f"{INFO}/METADATA": METADATA,
    f"{INFO}/sboms/auditwheel.cdx.json": json.dumps(BUNDLED),
    "usr/lib/python3/dist-packages/theirs-1.dist-info/METADATA": METADATA,
    "opt/venv/wheels.txt": f"{'ab' * 32}  some_package-1.0-py3-none-any.whl\n",
}


def layer(files: Mapping[str, str], **other: Any) -> bytes:
    """A layer. A text that begins with `-> ` is a link, one that begins with `=> ` a second name; `other`: what tar notes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as written:
        for name, text in files.items():
            one = tarfile.TarInfo(name)
            one.type = {"->": tarfile.SYMTYPE, "=>": tarfile.LNKTYPE}.get(text[:2], tarfile.REGTYPE)
            for what, value in other.items():
                setattr(one, what, value)
            data = b"" if one.type != tarfile.REGTYPE else text.encode()
            one.size, one.linkname = len(data), text[3:] if one.type != tarfile.REGTYPE else ""
            written.addfile(one, io.BytesIO(data))
    return out.getvalue()


def saved(path: Path, *layers: bytes, claimed: tuple[bytes, ...] = (), **config: Any) -> Path:
    """A file as `docker image save` writes it. `claimed`: the layers that its configuration names, if they are others."""
    ids = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in claimed or layers]
    about = json.dumps({"created": "2026-01-02T03:04:05.678Z", "rootfs": {"diff_ids": ids}, **config}).encode()
    manifest = [{"Config": "config.json", "Layers": [f"{number}/layer.tar" for number in range(len(layers))]}]
    parts = {"manifest.json": json.dumps(manifest).encode(), "config.json": about}
    parts |= {f"{number}/layer.tar": one for number, one in enumerate(layers)}
    with tarfile.open(path, "w") as out:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return read(saved(tmp_path / "image.tar", layer(FILES)), "kit:solo")


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that was printed."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celery-kit: ")
    return line


# What an image holds.


def test_a_layer_covers_and_removes_what_is_below_it(tmp_path: Path) -> None:
    below = layer({"a/one": "1", "a/two": "2", "b/one": "1", "b/sub/two": "2", "c": "old", "etc/os-release": "x"})
    above = layer({"a/.wh.one": "", "b/.wh..wh..opq": "", "b/new": "3", "c": "new", ".wh.etc": "", "d": "=> c"})
    found = read(saved(tmp_path / "x.tar", below, above), "x")
    assert sorted(found.files) == ["a/two", "b/new", "c", "d"]
    assert found.files["c"].sha256 == found.files["d"].sha256 == hashlib.sha256(b"new").hexdigest()
    assert not found.texts


def test_a_compressed_layer_is_the_same(tmp_path: Path, image: Image) -> None:
    plain = layer(FILES)
    found = read(saved(tmp_path / "x.tar", gzip.compress(plain), claimed=(plain,)), image.name)
    assert found.files == image.files


def test_a_layer_that_is_not_the_configurations_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(tmp_path / "x.tar", layer({"a": "changed"}), claimed=(layer({"a": "as it was"}),))
    with pytest.raises(SystemExit, match="2"):
        read(path, "kit:solo")
    assert "kit:solo: a layer is sha256:" in refused(capsys)


@pytest.mark.parametrize("content", [b"", b"no tar", layer({"manifest.json": "[]"}), layer({"manifest.json": "{"})])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(SystemExit, match="2"):
        read(tmp_path / "x.tar", "kit:solo")
    assert "kit:solo is no image as 'docker image save' writes it" in refused(capsys)


# SBOM and licences.


def test_every_package_is_found_with_its_licences(image: Image) -> None:
    found = {one.name: one for one in packages(image)}
    assert sorted(found) == ["libc6", "libgcc-s1", "old", "python", "some-package", "zlib"]
    assert found["libc6"].licences == ("Artistic-1.0-Perl", "GPL-3.0-only", "LGPL-2.1-or-later", "MIT")
    assert found["libgcc-s1"].licences == ("GPL-3",)
    assert found["old"].licences == (UNNAMED,)
    assert found["python"].version == "3.13.9"
    assert found["some-package"].licences == ("Apache-2.0 OR MIT",)
    assert found["some-package"].sha256 == "ab" * 32
    assert found["zlib"].within == "some-package" and found["zlib"].licences == ("Zlib",)
    assert str(found["libc6"].purl) == "pkg:deb/debian/libc6@2.41-12?arch=amd64&distro=debian-13&upstream=glibc%402.41-1"


def test_the_sbom_is_valid_and_a_function_of_the_image(tmp_path: Path, image: Image) -> None:
    text = sbom(image, packages(image))
    assert JsonStrictValidator(SCHEMA).validate_str(text) is None
    about = json.loads(text)
    assert about["metadata"]["component"]["version"] == f"sha256:{image.digest}"
    parts = {one["name"]: one for one in about["components"]}
    assert parts["some-package"]["hashes"] == [{"alg": "SHA-256", "content": "ab" * 32}]
    assert [one["expression"] for one in parts["some-package"]["licenses"]] == ["Apache-2.0 OR MIT"]
    assert {one["license"].get("id") for one in parts["libc6"]["licenses"]} >= {"MIT", "GPL-3.0-only"}
    again = read(saved(tmp_path / "again.tar", layer(FILES)), image.name)
    assert sbom(again, packages(again)) == text


def test_the_licence_list_names_every_package(image: Image) -> None:
    text = licences(image, packages(image))
    assert "| some-package | 1.0 | Apache-2.0 OR MIT | https://example.com |" in text
    assert "| zlib | 1.3 | Zlib | some-package |" in text
    assert f"| old | 1:2 | {UNNAMED} |  |" in text and f"| {UNNAMED} | 1 |" in text


# Signature.


def test_dsse_signs_type_payload_and_lengths() -> None:
    """The example of DSSE's own specification."""
    assert statement.signed("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_key_is_made_once_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "sign/key.pem"
    first = statement.private_key(path)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert statement.public_pem(statement.private_key(path)) == statement.public_pem(first)


def pem(key: Any, how: Any = None) -> bytes:
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how or NoEncryption()))


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"nothing", 0o600, "is no private key in PEM without a passphrase"),
        (
            pem(Ed25519PrivateKey.generate(), BestAvailableEncryption(b"x")),
            0o600,
            "is no private key in PEM without a passphrase",
        ),
        (pem(generate_private_key(65537, 2048)), 0o600, "is a key of another kind; allowed: Ed25519"),
        (pem(Ed25519PrivateKey.generate()), 0o644, "can be read by other users (mode 644)"),
    ],
)
def test_a_wrong_key_is_refused(
    tmp_path: Path, content: bytes, mode: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(SystemExit, match="2"):
        statement.private_key(path)
    line = refused(capsys)
    assert line.startswith(f"celery-kit: SIGN_KEY={path} ") and said in line


DOCKER = """#!/bin/sh
for name; do :; done
file="$IMAGES/$(echo "$name" | tr / _)"
[ -f "$file" ] || { echo "Error response from daemon: No such image: $name" >&2; exit 1; }
case "$2 $4" in
"save "*) cat "$file" ;;
*Id*) echo "sha256:$(sha256sum < "$file" | cut -c1-64)" ;;
*) echo "[]" ;;
esac
"""


class House:
    """A checkout with a commit, its papers and keys, and an engine with images: all below one folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.images = folder, folder / "images"
        for name in ("images", "bin", "root/celery_kit", "root/app", "root/deploy/mail", "root/requirements"):
            (folder / name).mkdir(parents=True)
        self.root = folder / "root"
        code = ("celery_kit/kit.py", "app/__init__.py", "deploy/mail/catcher.py", "deploy/healthy.sh", "deploy/Dockerfile")
        for name in (*code, "requirements/worker.txt"):
            (self.root / name).write_text(f"{name}\n")
        for words in ("init -q", "add .", "-c user.name=x -c user.email=x@x commit -q -m x"):
            subprocess.run(["git", *words.split()], cwd=self.root, check=True)
        (folder / "bin/docker").write_text(DOCKER)
        (folder / "bin/docker").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("IMAGES", str(self.images))
        monkeypatch.setenv("IMAGE", "kit")
        monkeypatch.setenv("POOL", "solo")
        monkeypatch.setattr(commands, "load_dotenv", lambda _: None)
        monkeypatch.setattr(commands, "base", lambda: "python:base")
        for module in (commands, statement):
            monkeypatch.setattr(module, "ROOT", self.root)
        self.papers, self.key = self.root / "supply", self.root / ".kit/sign/key.pem"
        monkeypatch.setattr(commands, "PAPERS", self.papers)
        monkeypatch.setattr(commands, "KEY", self.key)
        monkeypatch.setattr(commands, "PUBLIC", self.key.with_suffix(".pub"))
        monkeypatch.setattr(commands, "HANDED_OUT", self.papers / "key.pub")
        (self.images / "python:base").write_text("the base")
        self.monkeypatch = monkeypatch
        self.build()

    def build(self, **files: str) -> None:
        """The image kit:solo, with the code of the checkout."""
        code = {"srv/celery_kit/kit.py": "celery_kit/kit.py\n", "srv/app/__init__.py": "app/__init__.py\n"}
        code |= {"srv/celery_kit": "/", "usr/local/bin/healthy": "deploy/healthy.sh\n", "srv/app": "/", **files}
        folders = layer({name: "" for name, text in code.items() if text == "/"}, type=tarfile.DIRTYPE)
        saved(
            self.images / "kit:solo", layer(FILES), folders, layer({name: text for name, text in code.items() if text != "/"})
        )

    def run(self, command: str) -> int:
        self.monkeypatch.setattr(sys, "argv", ["supply", command])
        return commands.main()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(tmp_path, monkeypatch)


def test_what_is_signed_names_image_papers_commit_locks_and_base(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    address = "https://me:secret@code.example.com/kit.git"
    subprocess.run(["git", "config", "remote.origin.url", address], cwd=house.root, check=True)
    assert house.run("sign") == 0
    envelope = (house.papers / "solo.intoto.json").read_text()
    found = statement.opened(envelope, statement.public_key(house.papers / "key.pub"), "it")
    subjects = {one["name"]: one["digest"]["sha256"] for one in found["subject"]}
    assert subjects["kit:solo"] == read(house.images / "kit:solo", "kit:solo").digest
    assert subjects["solo.cdx.json"] == hashlib.sha256((house.papers / "solo.cdx.json").read_bytes()).hexdigest()
    assert "solo.licences.md" in subjects
    parts = found["predicate"]["buildDefinition"]["resolvedDependencies"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=house.root, capture_output=True, text=True, check=True)
    assert parts[0] == {"uri": "git+https://code.example.com/kit.git", "digest": {"gitCommit": head.stdout.strip()}}
    assert {one.get("name") for one in parts[1:]} == {"python:base", "requirements/worker.txt", "deploy/Dockerfile"}
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    capsys.readouterr()
    assert house.run("verify") == 0
    assert "kit:solo" in capsys.readouterr().out


def change_image(house: House) -> None:
    house.build(**{"usr/bin/more": "x"})


def change_sbom(house: House) -> None:
    file = house.papers / "solo.cdx.json"
    file.write_text(file.read_text().replace('"libc6"', '"libc7"'))


def remove_licences(house: House) -> None:
    (house.papers / "solo.licences.md").unlink()


def use_another_key(house: House) -> None:
    (house.folder / "other.pub").write_bytes(statement.public_pem(Ed25519PrivateKey.generate()))
    house.monkeypatch.setenv("VERIFY_KEY", str(house.folder / "other.pub"))


def change_statement(house: House) -> None:
    file = house.papers / "solo.intoto.json"
    about = json.loads(file.read_text())
    payload = json.loads(base64.b64decode(about["payload"]))
    payload["predicate"]["buildDefinition"]["resolvedDependencies"][0]["digest"]["gitCommit"] = "0" * 40
    file.write_text(json.dumps(about | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}))


def break_statement(house: House) -> None:
    (house.papers / "solo.intoto.json").write_text('{"payload": 1}')


def take_another_images(house: House) -> None:
    """All that was signed for one image, in the place of another."""
    house.monkeypatch.setenv("POOL", "threads")
    (house.images / "kit:threads").write_bytes((house.images / "kit:solo").read_bytes())
    for file in list(house.papers.glob("solo.*")):
        file.rename(file.with_name(file.name.replace("solo", "threads")))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_image, "the image kit:solo is not the one that was signed: it is sha256:"),
        (change_sbom, "solo.cdx.json is not the one that was signed"),
        (remove_licences, "solo.licences.md is missing: one that was signed"),
        (use_another_key, "solo.intoto.json is not signed with this key (sha256 "),
        (change_statement, "solo.intoto.json is not signed with this key (sha256 "),
        (break_statement, "solo.intoto.json is no signed statement (a DSSE envelope)"),
        (take_another_images, "threads.cdx.json is not the one that was signed"),
    ],
)
def test_what_was_changed_is_refused_in_one_line(
    house: House, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    house.run("sign")
    capsys.readouterr()
    change(house)
    assert house.run("verify") == 1
    assert said in refused(capsys)


def edit_code(house: House) -> None:
    (house.root / "app/__init__.py").write_text("edited\n")


def have_older_code(house: House) -> None:
    house.build(**{"srv/app/__init__.py": "older\n"})


def have_more_code(house: House) -> None:
    house.build(**{"srv/app/more.py": "more\n"})


def have_no_base(house: House) -> None:
    (house.images / "python:base").unlink()


def have_no_image(house: House) -> None:
    (house.images / "kit:solo").unlink()


def name_no_image(house: House) -> None:
    house.monkeypatch.setenv("POOL", "fibers")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (edit_code, "app/__init__.py is not committed, and a statement names the commit"),
        (have_older_code, "kit:solo: its app/__init__.py is not that of commit "),
        (have_more_code, "kit:solo: its app/more.py is not that of commit "),
        (have_no_base, "the base image python:base is not there; PYTHON_IMAGE in .env names it"),
        (have_no_image, "the engine has no image kit:solo; 'make images' builds those of the pools and mail"),
        (name_no_image, "POOL=fibers is not known; allowed: prefork, "),
    ],
)
def test_what_cannot_be_signed_is_refused_in_one_line(
    house: House, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(house)
    with pytest.raises(SystemExit, match="2"):
        house.run("sign")
    assert said in refused(capsys)


def test_nothing_is_verified_without_a_statement_or_a_key(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        house.run("verify")
    assert f"VERIFY_KEY={house.key.with_suffix('.pub')} cannot be used: No such file or directory" in refused(capsys)
    house.run("sign")
    capsys.readouterr()
    (house.papers / "solo.intoto.json").unlink()
    with pytest.raises(SystemExit, match="2"):
        house.run("verify")
    assert "solo.intoto.json is missing" in refused(capsys)


# Two builds.


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"mode": 0o600}, "/a: mode 420, 384"),
        ({"uid": 7}, "/a: owner (0, 0), (7, 0)"),
        ({"mtime": 5}, "/a: mtime 0, 5"),
        ({}, "/a: sha256 "),
    ],
)
def test_two_builds_are_compared_file_by_file(tmp_path: Path, other: dict[str, int], said: str) -> None:
    one = read(saved(tmp_path / "1.tar", layer({"a": "x", "b": "x"})), "1")
    two = read(saved(tmp_path / "2.tar", layer({"a": "x" if other else "y"}, **other), layer({"b": "x"})), "2")
    found = list(differences(one, two))
    assert found[0].startswith(said) and found[1].startswith("layers: ") and len(found) == 2
    assert not list(differences(one, read(saved(tmp_path / "3.tar", layer({"a": "x", "b": "x"})), "1")))


def test_a_file_of_one_build_alone_and_another_configuration_are_differences(tmp_path: Path) -> None:
    one = read(saved(tmp_path / "1.tar", layer({"a": "x"})), "1")
    two = read(saved(tmp_path / "2.tar", layer({}), config={"User": "0"}), "2")
    assert [line.partition(",")[0].partition(" sha")[0] for line in differences(one, two)] == [
        "/a: only in 1",
        "layers:",
        "configuration: config None",
    ]


# Audit.

POLICY = """libc6:
  Installed: 2.41-12
  Candidate: 2.41-12+deb13u1
  Version table:
     2.41-12+deb13u1 500
        500 http://mirror.example/debian-security trixie-security/main amd64 Packages
 *** 2.41-12 100
        500 http://mirror.example/debian trixie/main amd64 Packages
        100 /tmp/status
bash:
  Installed: 5.2-1
  Candidate: 5.2-2
  Version table:
     5.2-2 500
        500 http://mirror.example/debian trixie/main amd64 Packages
 *** 5.2-1 100
        100 /tmp/status
old:
  Installed: 1
  Candidate: 1
  Version table:
 *** 1 500
        500 http://mirror.example/debian-security trixie-security/main amd64 Packages
        100 /tmp/status
"""


def test_an_update_is_a_candidate_that_is_not_installed() -> None:
    assert list(audit.updates(POLICY)) == ["libc6 2.41-12: 2.41-12+deb13u1 (security)", "bash 5.2-1: 5.2-2"]
    assert not list(audit.updates(""))


def answers(monkeypatch: pytest.MonkeyPatch, out: object, err: str = "") -> None:
    """A program of this name answers in place of pip-audit, which is no part of this environment."""
    text = out if isinstance(out, str) else json.dumps({"dependencies": out})
    done = subprocess.CompletedProcess([], 1, text, err)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)


def test_a_vulnerability_is_a_line_and_what_was_not_checked_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = {"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": ["CVE-1"], "description": "…"}
    answers(
        monkeypatch,
        [
            {"name": "a", "version": "1.0", "vulns": [fault]},
            {"name": "b", "skip_reason": "unknown"},
            {"name": "c", "vulns": []},
        ],
    )
    assert audit.of_python([]) == (["a 1.0: PYSEC-1 CVE-1, fixed in 1.1"], ["b"])


def test_advisories_that_cannot_be_read_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, "", "WARNING: x\nERROR: no route to host\n")
    with pytest.raises(audit.SilentError, match="packages cannot be read: ERROR: no route to host"):
        audit.of_python([])


@pytest.mark.parametrize(
    ("python", "debian", "code", "said"),
    [
        (([], []), ([], 3), 0, "nothing to do"),
        ((["a 1: X, fixed in 2"], []), ([], 3), 1, "python  a 1: X, fixed in 2"),
        (([], ["b"]), ([], 3), 1, "python  1 packages could not be checked, because the advisories do not have them: b"),
        (([], []), (["libc6 1: 2 (security)"], 3), 1, "debian  libc6 1: 2 (security)"),
        (audit.SilentError("no answer"), ([], 3), 1, "python  no answer"),
        (([], []), audit.SilentError("no lists"), 1, "debian  no lists"),
    ],
)
def test_audit_ends_with_1_if_anything_is_to_be_done_or_is_not_known(
    house: House, python: Any, debian: Any, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def give(what: Any) -> Any:
        if isinstance(what, Exception):
            raise what
        return what

    house.monkeypatch.setattr(audit, "of_python", lambda *_: give(python))
    house.monkeypatch.setattr(audit, "of_debian", lambda *_: give(debian))
    assert house.run("audit") == code
    assert said in capsys.readouterr().out.splitlines()


def test_a_command_that_is_none_is_refused(house: House, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        house.run("publish")
    assert "command=publish is not known; allowed: sbom, sign, verify, audit" in refused(capsys)


def test_an_engine_without_a_client_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(SystemExit, match="2"):
        archive.load("kit:solo")
    assert "docker: No such file or directory" in refused(capsys)
