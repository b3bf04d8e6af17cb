"""The images of the stacks: which base images there are, what an image is called, how it is built, and which code it holds."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from celery_kit.base.refusals import refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.codebase import Codebase, refuse_packages
from celery_kit.operate.stacks.docker import answered, ask, run
from celery_kit.operate.stacks.pythons import STANDINS, Python, chosen
from celery_kit.pools.table import POOLS


def prepare() -> None:
    """Make sure that an engine answers and that the base images exist. If not, exits with the exit code of the script."""
    ask("docker", "info")  # an engine that hangs is not started again
    row = python()
    chooser = ("deploy/images/choose.sh", row.version, row.variable, row.debian, ", ".join(STANDINS))
    for script in (("deploy/engine/start.sh",), chooser):
        if code := run(*script).returncode:
            raise SystemExit(code)


def settings() -> dict[str, str]:
    """The variables that Compose uses: those of .env and of the environment, which takes precedence."""
    from dotenv import dotenv_values  # installed where `make` runs, not in the images

    return {key: value for key, value in dotenv_values(ROOT / ".env").items() if value} | dict(os.environ)


def python() -> Python:
    """The version of Python in the images, chosen by PYTHON."""
    return chosen(settings())


def of_python() -> dict[str, str]:
    """The variables of that version for Compose. Call it after the base images have been chosen."""
    return python().environ(settings())


def build(pool: str, codebase: Codebase | None = None) -> None:
    """Build the worker image of a pool: for a codebase, or for app/, with the mail catcher's image. Refuses if that fails."""
    file = next(broker.compose_file for broker in BROKERS.values() if broker.compose_file)  # the build is the same in each
    environ = {**os.environ, "POOL": pool, **of_python()}
    if codebase:
        build_codebase(("-f", file), pool, codebase, environ | codebase.environ())
    elif run("docker", "compose", "-f", file, "build", "--quiet", "worker", "mail", env=environ).returncode:
        refuse(f"the image of pool {pool} could not be built; the reason stands above")


def build_each(
    files: Sequence[str], pools: Sequence[str], codebase: Codebase | None, environ: Mapping[str, str], monitored: bool
) -> None:
    """Build all images of a stack with workers of several pools. Refuses if one cannot be built.

    One after the other: BuildKit may fail when it builds images with equal layers at once ("inconsistent graph state").
    """
    for pool in pools:
        environ = {**environ, "POOL": pool}
        if codebase:
            build_codebase(files, pool, codebase, environ, monitored and pool == pools[-1])
        else:
            build_services(files, ["worker"], f"the image of pool {pool}", codebase, environ)
    for service in ["mail"] + ["flower"] * (monitored and not (codebase and pools)):
        build_services(files, [service], f"the image of {service}", codebase, environ)


def build_codebase(
    files: Sequence[str], pool: str, codebase: Codebase, environ: Mapping[str, str], monitored: bool = False
) -> None:
    """Build the image of a codebase for a pool. With `monitored`, also build Flower's.

    Refuses, in one line, packages that conflict with the kit's.
    """
    codebase.check("worker", pool, *["monitor"] * monitored)
    print(f"building {image(pool, codebase)} from {codebase.source}", file=sys.stderr, flush=True)
    what = f"the image of {codebase.app} on pool {pool}"
    build_services(files, ["worker", *["flower"] * monitored], what, codebase, environ)


def build_services(
    files: Sequence[str], services: Sequence[str], what: str, codebase: Codebase | None, environ: Mapping[str, str]
) -> None:
    """Build the images of services. Refuses, with the last lines of the build, if one cannot be built. `what`: in words."""
    words = ("docker", "compose", "--progress", "plain", *files, "build", *services)
    done = run(*words, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        if codebase and codebase.requirements:
            refuse_packages(codebase.requirements, done.stdout)
        print("\n".join(done.stdout.splitlines()[-15:]), file=sys.stderr)
        refuse(f"{what} could not be built; the reason stands above")


def image(tag: str, codebase: Codebase | None = None) -> str:
    """The name of an image of this project or of a codebase. `tag`: a pool, or `mail`. IMAGE is the name before the tag.

    The tag also has the version of Python, unless it is the default, and CELERY and APP_VERSION for workers.
    """
    version = os.environ.get("APP_VERSION") if tag in POOLS else ""
    name = codebase.image if codebase else os.environ.get("IMAGE") or "celery-kit"
    return f"{name}:{unversioned(tag)}{(version and f'-{version}') or ''}"


def unversioned(tag: str) -> str:
    """The tag of an image without APP_VERSION. `tag`: a pool, or `mail`."""
    celery = os.environ.get("CELERY") if tag in POOLS else ""
    return f"{tag}{python().tag}{(celery and f'-celery{celery}') or ''}"


def image_size(image: str) -> int:
    """The size of an image with its base, in bytes."""
    return int(answered(ask("docker", "image", "inspect", "--format", "{{.Size}}", image)))


#: Folders of a codebase that are not copied into its image (deploy/Dockerfile).
NOT_COPIED = {".git", ".venv", "venv", "__pycache__"}


@dataclass(frozen=True)
class Code:
    """A folder whose code is copied into an image, and the folder in the image."""

    folder: Path
    inside: str

    def __str__(self) -> str:
        return f"{self.folder.name if self.folder.parent == ROOT else self.folder}/"

    def here(self) -> dict[str, str]:
        """The SHA-256 of each Python or Lua file, by its path relative to the folder."""
        found = (path for path in self.folder.rglob("*") if path.suffix in (".py", ".lua") and path.is_file())
        names = {path: path.relative_to(self.folder) for path in found}
        return {
            f"./{name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path, name in names.items()
            if not NOT_COPIED & {*name.parts}
        }

    def differs(self, container: str) -> bool:
        """Whether a container has other code. False if it cannot be asked. Files that a .dockerignore may leave out may be
        missing there.
        """
        listed = f"cd {self.inside} && find . \\( -name '*.py' -o -name '*.lua' \\) -type f -exec sha256sum {{}} +"
        lines = ask("docker", "exec", container, "sh", "-c", listed).stdout.splitlines()
        here, there = self.here(), {name: told for told, _, name in (line.partition("  ") for line in lines)}
        if (self.folder / ".dockerignore").exists():
            here = {name: told for name, told in here.items() if name in there}
        return bool(there) and here != there


KIT = Code(ROOT / "celery_kit", "/srv/celery_kit")
#: The code in this repository's images.
CODE = (Code(ROOT / "app", "/srv/app"), KIT)
