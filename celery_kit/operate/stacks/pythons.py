"""The table of Pythons: the versions that images can be built with, and where each comes from.

`PYTHON=3.14` chooses a row; what starts otherwise is an interpreter's name or path, which is no image's matter (deploy/env.sh).
"""

import platform
from collections.abc import Mapping
from dataclasses import dataclass

from celery_kit.base.refusals import choose, refuse


@dataclass(frozen=True)
class Python:
    """A row of the table.

    `debian`: the Debian release whose `python3` it is, which a stand-in can be made of; empty: none, the official image alone.
    `run`: what was run with it, in words.
    """

    version: str
    debian: str
    run: str

    @property
    def official(self) -> str:
        return f"python:{self.version}-slim-trixie"

    @property
    def variable(self) -> str:
        """What names its base image in .env; the default's is of the time before there was a choice."""
        return "PYTHON_IMAGE" if self.version == DEFAULT else f"PYTHON_IMAGE_{self.version.replace('.', '_')}"

    @property
    def tag(self) -> str:
        """What the tags of its images end with: images of two versions stand beside each other."""
        return "" if self.version == DEFAULT else f"-py{self.version}"

    def environ(self, settings: Mapping[str, str]) -> dict[str, str]:
        """What Compose is told of it; nothing of the default, so that a value that the user set stands."""
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
#: Those that a machine without a registry can have.
STANDINS = [one.version for one in PYTHONS.values() if one.debian]


def chosen(settings: Mapping[str, str]) -> Python:
    """The row that PYTHON names in `settings`: the environment, and .env where it is read. Refuses a version without a row."""
    given = settings.get("PYTHON") or DEFAULT
    return PYTHONS[choose("PYTHON", given, PYTHONS) if given[0].isdigit() else DEFAULT]


def on_this_machine(settings: Mapping[str, str]) -> None:
    """Refuse a version that is not this process', where processes of this machine take the place of images."""
    given, here = settings.get("PYTHON", ""), ".".join(platform.python_version_tuple()[:2])
    if given[:1].isdigit() and given != here:
        refuse(f"PYTHON={given} chooses images, and none is used here: .venv has Python {here}; other stacks have (BROKER=)")
