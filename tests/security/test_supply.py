"""The papers of the images that are deployed, and the commands that make them. Each rule, on small images: tests/unit/house."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cyclonedx.validation.json import JsonStrictValidator

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image as name_of
from deploy.supply.archive import Image, load
from deploy.supply.packages import UNNAMED, Package, packages
from deploy.supply.sbom import SCHEMA, sbom
from tests.deploy.conftest import Checkout, clone

#: As Python itself names the packages that it can import, in a container of the image, as the image's own user.
SEEN = "import importlib.metadata as m; print(*sorted({f'{d.name} {d.version}' for d in m.distributions()}), sep='\\n')"
TAGS = ("gevent", "mail")


def docker(*words: str, **options: str) -> str:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True, timeout=120, **options)  # type: ignore[call-overload]
    return str(done.stdout).strip()


@pytest.fixture(scope="module", params=TAGS)
def image(request: pytest.FixtureRequest) -> Image:
    return load(name_of(request.param))


@pytest.fixture(scope="module")
def held(image: Image) -> list[Package]:
    return packages(image)


def test_the_sbom_is_valid(image: Image, held: list[Package]) -> None:
    assert JsonStrictValidator(SCHEMA).validate_str(sbom(image, held)) is None


def test_the_sbom_names_what_python_sees(image: Image, held: list[Package]) -> None:
    """But for this repository's own package, and for a Python that is no package of Debian's."""
    seen = docker("run", "--rm", "--network", "none", "--entrypoint", "python", image.name, "-c", SEEN).splitlines()
    normal = {re.sub(r"[-_.]+", "-", line).lower() if " " not in line else line for line in seen}
    names = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, _, version in (line.partition(" ") for line in normal)}
    found = {(one.name, one.version) for one in held if one.kind == "python" and one.name not in ("celery-kit", "python")}
    assert found == names and len(found) > (1 if "mail" in image.name else 20)


def test_each_wheel_is_one_that_a_lock_allows(image: Image, held: list[Package]) -> None:
    locks = "".join(path.read_text() for path in (ROOT / "requirements").glob("*.txt"))
    wheels = [one for one in held if one.kind == "python" and one.purl.type == "pypi"]
    assert wheels
    assert not [one.name for one in wheels if not one.sha256 or f"--hash=sha256:{one.sha256}" not in locks]


def test_every_python_package_names_its_licence(held: list[Package]) -> None:
    assert not [one.name for one in held if one.kind == "python" and one.licences == (UNNAMED,)]


def test_the_record_has_no_package_that_was_removed(image: Image, held: list[Package]) -> None:
    debian = {one.name for one in held if one.kind == "debian"}
    assert "libc6" in debian and not debian & {"apt", "dpkg", "debconf", "perl-base", "python3-pip"}
    assert "bin/sh" in image.files or "usr/bin/sh" in image.files


def test_every_user_can_read_the_code(image: Image) -> None:
    code = {path: file for path, file in image.files.items() if path.startswith("srv/")}
    assert code and not {
        path for path, file in code.items() if file.mode & 0o444 != 0o444 or file.mode & 0o022 or any(file.owner)
    }


class Advisories(BaseHTTPRequestHandler):
    """A server of advisories, which knows a fault in one package: as api.osv.dev answers."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fixed = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}]
        fault = {
            "id": "TEST-1", "summary": "x", "details": "x", "modified": "2026-01-01T00:00:00Z",
            "affected": [{"package": {"name": "celery", "ecosystem": "PyPI"}, "ranges": fixed}],
        }  # fmt: skip
        body = json.dumps({"vulns": [fault]} if asked["package"]["name"] == "celery" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def advisories() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Advisories) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    """A clone with a commit, and an image of its own name."""
    checkout, own = clone(tmp_path / "celery-kit"), f"celery-kit-supply-{os.getpid()}"
    for words in ("init -q", "add .", "-c user.name=x -c user.email=x@example.com commit -q -m x"):
        subprocess.run(["git", *words.split()], cwd=checkout.folder, check=True)
    docker("tag", name_of("solo"), f"{own}:solo")
    checkout.environ |= {"IMAGE": own, "POOL": "solo"}
    try:
        yield checkout
    finally:
        docker("image", "rm", "--force", f"{own}:solo")


def test_what_a_user_types_about_an_image(checkout: Checkout, advisories: str) -> None:
    assert checkout.make("sbom").returncode == 0
    papers = checkout.folder / "supply"
    assert JsonStrictValidator(SCHEMA).validate_str((papers / "solo.cdx.json").read_text()) is None
    assert "| celery | 5." in (papers / "solo.licences.md").read_text()
    assert checkout.make("sign").returncode == 0
    assert (checkout.folder / ".kit/sign/key.pem").stat().st_mode & 0o777 == 0o600
    assert "is what was signed: commit " in checkout.make("verify").stdout
    # Somebody puts a file into it.
    name = f"{checkout.environ['IMAGE']}:solo"
    docker("build", "--quiet", "--tag", name, "-", input=f"FROM {name}\nENV MORE=1\n")
    assert f"the image {name} is not the one that was signed" in checkout.refusal(checkout.make("verify"))
    done = checkout.make("audit", OSV_URL=advisories)
    assert re.search(r"^python  celery 5\S+: TEST-1, fixed in 99.0$", done.stdout, re.MULTILINE) and done.returncode
    assert re.search(rf"^debian  (\d+ packages of {name}, |Debian's package lists cannot be read: )", done.stdout, re.MULTILINE)
