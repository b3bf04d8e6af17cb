"""Which versions of other packages are installed, and whether a part that stands on their internals may be used with them."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet
from packaging.version import Version


@cache
def installed(package: str) -> Version | None:
    """The installed version of `package`; None where it is not installed."""
    try:
        return Version(version(package))
    except PackageNotFoundError:
        return None


def command(tool: str) -> str:
    """What to type for a tool of the kit, such as `dead`: `celery-kit dead` if the kit is installed as a package.

    In this repository it is not, nor in its images: there it is `make dead`.
    """
    return f"{'celery-kit' if installed('celery-kit') else 'make'} {tool}"


def unmet(needs: Mapping[str, str]) -> str:
    """Which of `needs` the installed packages do not meet, in words; empty where they meet them all.

    `needs`: by a package's name, the versions that will do, written as for pip: `{"celery": "==5.7.*", "amqp": ">=5.3,<6"}`.
    """
    wrong = []
    for package, versions in needs.items():
        found = installed(package)
        if found is None:
            wrong.append(f"{package} {versions} is not installed")
        elif not SpecifierSet(versions).contains(found, prereleases=True):
            wrong.append(f"{package} {found} is not {versions}")
    return ", ".join(wrong)
