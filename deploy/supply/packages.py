"""The packages of an image, as its files name them: Debian's record, Python's metadata, and SBOMs that packages bring along."""

import json
import logging
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from typing import Any

from cyclonedx.spdx import fixup_id
from debian.copyright import Copyright, NotMachineReadableError
from debian.deb822 import Packages as Record
from packageurl import PackageURL
from packaging.utils import canonicalize_name, parse_wheel_filename

from celery_kit.base.target import ROOT
from deploy.supply.archive import Image

logging.getLogger("debian.copyright").setLevel(logging.ERROR)  # it reports spellings that it has understood

UNNAMED = "not named"
#: A licence in Debian's words that SPDX writes otherwise; the GNU ones are below.
SPDX = {"Expat": "MIT", "Artistic": "Artistic-1.0-Perl", "PSF-2": "PSF-2.0"}
#: The same of what authors of Python packages write. What leaves a choice, such as `BSD`, stays as it is.
WRITTEN = {"MIT License": "MIT", "New BSD": "BSD-3-Clause"}
GNU = re.compile(r"([AL]?GPL|GFDL)-(\d)(?:\.(\d))?(?:\.0)?(\+)?")
#: What stands between the licences of a file; and where a copyright file that no program can read sends its reader.
AND_OR = re.compile(r",?\s+(?:and|or)\s+|\s*[,|]\s*")
COMMON = re.compile(r"/usr/share/common-licenses/([A-Z][\w.+-]*\w)")


@dataclass(frozen=True)
class Package:
    """A package of an image. `kind`: debian, python, or bundled, which is `within` another one. `sha256`: of its wheel."""

    kind: str
    name: str
    version: str
    licences: tuple[str, ...]
    purl: PackageURL
    sha256: str = ""
    homepage: str = ""
    within: str = ""


def packages(image: Image) -> list[Package]:
    """All of them, by kind and name."""
    found = {*_kit(image), *_debian(image), *_interpreter(image), *_python(image), *_bundled(image)}
    return sorted(found, key=lambda one: (one.kind, one.name, one.version, one.within))


def _kit(image: Image) -> Iterator[Package]:
    """This repository's own package. The image has its files; the version is that of the checkout."""
    if "srv/celery_kit" in image.files:
        about = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        purl = PackageURL("generic", name=about["name"], version=about["version"])
        yield Package("python", about["name"], about["version"], (about["license"],), purl)


def _interpreter(image: Image) -> Iterator[Package]:
    """A Python that is no package of Debian's, as in the official images."""
    for path, text in image.texts.items():
        if path.endswith("/patchlevel.h") and (found := re.search(r'PY_VERSION\s+"([^"]+)"', text)):
            purl = PackageURL("generic", name="python", version=found[1])
            yield Package("python", "python", found[1], ("PSF-2.0",), purl, homepage="https://www.python.org")


def _debian(image: Image) -> Iterator[Package]:
    system = dict(line.split("=", 1) for line in image.texts.get("etc/os-release", "").splitlines() if "=" in line)
    distribution = f"{system.get('ID', 'debian')}-{system.get('VERSION_ID', '')}".replace('"', "").rstrip("-")
    for path, text in image.texts.items():
        if not path.startswith("var/lib/dpkg/status"):
            continue
        for one in Record.iter_paragraphs(text.splitlines(keepends=True), use_apt_pkg=False):
            if not one.get("Status", "install ok installed").endswith(" installed"):
                continue
            qualifiers = {"arch": one["Architecture"], "distro": distribution}
            if source := one.get("Source"):
                qualifiers["upstream"] = re.sub(r" \((.*)\)", r"@\1", source)
            purl = PackageURL("deb", "debian", one["Package"], one["Version"], qualifiers)
            yield Package(
                "debian",
                one["Package"],
                one["Version"],
                _of_debian(image, one["Package"]),
                purl,
                homepage=one.get("Homepage", ""),
            )


def _of_debian(image: Image, name: str) -> tuple[str, ...]:
    """The licences in a package's copyright file, in the words of SPDX where that has some.

    The file may be that of another package, whose folder a link names.
    """
    folder = f"usr/share/doc/{name}"
    if (file := image.files.get(folder)) and file.kind == "link":
        folder = f"usr/share/doc/{file.link.rpartition('/')[2]}"
    text = image.texts.get(f"{folder}/copyright", "")
    try:
        parts = Copyright(text.splitlines(keepends=True), strict=False).all_files_paragraphs()
        found: list[Any] = [part.license for part in parts if part.license]
        named = {name for one in found for name in AND_OR.split(one.synopsis)}
    except (NotMachineReadableError, ValueError):
        named = set()
    return tuple(sorted({_spdx(name) for name in named if name} or {*COMMON.findall(text)})) or (UNNAMED,)


def _spdx(name: str) -> str:
    if found := GNU.fullmatch(name):
        family, major, minor, later = found.groups()
        return f"{family}-{major}.{minor or 0}-{'or-later' if later else 'only'}"
    return SPDX.get(name) or fixup_id(name) or name


def _python(image: Image) -> Iterator[Package]:
    wheels = dict(_wheels(image))
    for path, text in image.texts.items():
        if not path.endswith(".dist-info/METADATA") or path.startswith("usr/lib/python3/"):  # Debian's record has those
            continue
        about = HeaderParser().parsestr(text)
        name, version = canonicalize_name(about["Name"]), about["Version"]
        classifiers = [one.rpartition(" :: ")[2] for one in about.get_all("Classifier", []) if one.startswith("License :: ")]
        field = about.get("License", "").strip()
        named = [about["License-Expression"]] if about["License-Expression"] else []
        named = named or ([field] if "\n" not in field and field not in ("", "UNKNOWN", "Dual License") else classifiers)
        licences = tuple(sorted({WRITTEN.get(one, one) for one in named})) or (UNNAMED,)
        purl = PackageURL("pypi", name=name, version=version)
        homepage = about.get("Home-page") or next(
            (url.partition(", ")[2] for url in about.get_all("Project-URL", []) if url.lower().startswith(("home", "source"))),
            "",
        )
        yield Package("python", name, version, licences, purl, wheels.get((name, version), ""), homepage)


def _wheels(image: Image) -> Iterator[tuple[tuple[str, str], str]]:
    """Name and version, and the wheel's hash, as deploy/pip-install.sh has noted it."""
    for path, text in image.texts.items():
        if path.endswith("/wheels.txt"):
            for digest, file in (line.split("  ", 1) for line in text.splitlines()):
                name, version, *_ = parse_wheel_filename(file)
                yield (name, str(version)), digest


def _bundled(image: Image) -> Iterator[Package]:
    """What a package's own SBOM says that it brings along, such as libraries in a wheel (PEP 770)."""
    for path, text in image.texts.items():
        if "/sboms/" not in path:
            continue
        owner = canonicalize_name(path.partition(".dist-info/")[0].rpartition("/")[2].rpartition("-")[0])
        about = json.loads(text)
        for one in about.get("components", []):
            if canonicalize_name(one["name"]) == owner or not one.get("purl"):
                continue
            named = [
                named.get("expression") or named.get("license", {}).get("id") or named.get("license", {}).get("name")
                for named in one.get("licenses", [])
            ]
            licences = tuple(sorted(filter(None, named))) or (UNNAMED,)
            yield Package(
                "bundled", one["name"], one.get("version", ""), licences, PackageURL.from_string(one["purl"]), within=owner
            )
