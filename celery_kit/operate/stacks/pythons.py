"""The table of Pythons: the versions that images can be built with, and where each comes from.

`PYTHON=3.14` chooses a row. A value that does not start with a digit is the name or path of an interpreter for .venv
(deploy/env.sh), and does not affect images.
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from celery_kit.base.refusals import choose, refuse


@dataclass(frozen=True)
class Python:
    """A row of the table.

    `version`: such as 3.13. `debian`: the Debian release that has this version as `python3`, from which a stand-in can be
    built; empty: only the official image has it. `run`: what was run with it, as text.
    """

    version: str
    debian: str
    run: str

    @property
    def official(self) -> str:
        """The official base image."""
        return f"python:{self.version}-slim-trixie"

    @property
    def variable(self) -> str:
        """The variable of its base image in .env. That of the default version has no suffix."""
        return "PYTHON_IMAGE" if self.version == DEFAULT else f"PYTHON_IMAGE_{self.version.replace('.', '_')}"

    @property
    def tag(self) -> str:
        """The suffix of the tags of its images, so that images of several versions can exist. Empty for the default version."""
        return "" if self.version == DEFAULT else f"-py{self.version}"

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        """Its variables for Compose. Empty for the default version, so that a value that the user has set is used."""
        if self.version == DEFAULT:
            return {}
        return {"PYTHON_IMAGE": settings.get(self.variable) or self.official, "PYTHON_TAG": self.tag}


DEFAULT = "3.13"
PYTHONS = {
    one.version: one
    for one in (
        Python("3.12", "", "nothing: no registry answered; every pinned package has a build for it"),
        Python("3.13", "trixie", "all tests"),
        Python("3.14", "forky", "the unit tests; each row of the matrix on each pool, with one broker at least"),
    )
}
#: The versions that can be built without a registry.
STANDINS = [one.version for one in PYTHONS.values() if one.debian]


def chosen(settings: Mapping[str, str]) -> Python:
    """The row that PYTHON names in `settings`: the environment, or with .env. Refuses a version without a row."""
    given = settings.get("PYTHON") or DEFAULT
    return PYTHONS[choose("PYTHON", given, PYTHONS) if given[0].isdigit() else DEFAULT]


def on_this_machine(settings: Mapping[str, str]) -> None:
    """Refuse a PYTHON that is not this process' version. For stacks whose processes run on this machine, without images."""
    given, here = settings.get("PYTHON", ""), ".".join(platform.python_version_tuple()[:2])
    if given[:1].isdigit() and given != here:
        refuse(f"PYTHON={given} chooses images, and none is used here: .venv has Python {here}; other stacks have (BROKER=)")
