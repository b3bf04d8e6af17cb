"""Whether two builds from nothing give the same image: `make test-layers` (POOL=gevent: that of one pool).

The second build is that of another checkout, with other times and modes of its files. Writes docs/reports/layers.md.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.images import of_python, python
from deploy.supply.archive import SERVICES, File, Image, base, load
from docs.reference import table

#: The time that the images' configuration names as that of the build, in seconds since 1970.
EPOCH = 1_600_000_000


def differences(one: Image, other: Image) -> Iterator[str]:
    """What two images do not have in common: a line each."""
    for path in sorted({*one.files, *other.files}):
        here, there = one.files.get(path), other.files.get(path)
        if here is None or there is None:
            yield f"/{path}: only in {(other if here is None else one).name}"
            continue
        for field in fields(File):
            if (first := getattr(here, field.name)) != (second := getattr(there, field.name)):
                yield f"/{path}: {field.name} {first}, {second}"
    if one.layers != other.layers:
        yield f"layers: {', '.join(one.layers)}; {', '.join(other.layers)}"
    for name in sorted({*one.config, *other.config} - {"rootfs"}):
        if (first := one.config.get(name)) != (second := other.config.get(name)):
            yield f"configuration: {name} {first}, {second}"


def copied(folder: Path) -> None:
    """Make a second checkout, as another user has it: its files are new, and nobody else can read them."""
    words = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    names = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        (folder / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
        (folder / name).chmod((ROOT / name).stat().st_mode & 0o700)
    if (ROOT / ".env").exists():
        shutil.copy(ROOT / ".env", folder / ".env")


def built(folder: Path, name: str, tag: str) -> tuple[Image, float]:
    """Build an image from nothing in a checkout. Gives the image and the seconds that it took."""
    environ: Mapping[str, str] = os.environ | of_python() | {"IMAGE": name, "POOL": tag} | {"COMPOSE_PROFILES": "monitor"}
    file = next(broker.compose_file for broker in BROKERS.values() if broker.compose_file)
    # Compose notes the stack's name in an image.
    words = ("docker", "compose", "-p", "celery-kit", "-f", str(file), "build", "--quiet", "--no-cache")
    began = time.monotonic()
    done = subprocess.run(
        [*words, "--build-arg", f"SOURCE_DATE_EPOCH={EPOCH}", SERVICES[tag]], cwd=folder, env=environ, check=False
    )
    if done.returncode:
        refuse(f"the image {tag} could not be built; the reason stands above")
    took = time.monotonic() - began
    return load(f"{name}:{tag}{python().tag}"), took


def row(tag: str) -> tuple[str, str, str, str, str, list[str]]:
    """Build and compare one image: a row of the report, and what is different."""
    names = [f"celery-kit-twice-{os.getpid()}-{number}" for number in (1, 2)]
    try:
        with tempfile.TemporaryDirectory() as second:
            copied(Path(second))
            pairs = [built(folder, name, tag) for folder, name in zip((ROOT, Path(second)), names, strict=True)]
    finally:
        subprocess.run(["docker", "image", "rm", *(f"{name}:{tag}{python().tag}" for name in names)], capture_output=True)
    (one, took), (other, again) = pairs
    found = list(differences(one, other))
    same = "the same" if one.digest == other.digest else "different"
    return tag, str(len(one.files)), str(len(found)), f"{same}: `{one.digest[:16]}…`", f"{took:.0f}, {again:.0f}", found


def main() -> None:
    """Exits with 1 if two builds differ."""
    given = os.environ.get("POOL")
    tags = [choose("POOL", given, SERVICES)] if given else ["prefork", "gevent"]
    rows = [row(tag) for tag in tags]
    engine = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"], capture_output=True, text=True, check=True
    )
    heads = ("image", "files, folders, links", "differences", "digest of the configuration", "seconds")
    found = [f"{tag}: {line}" for tag, *_, lines in rows for line in lines]
    (ROOT / "docs/reports/layers.md").write_text(
        f"""# Two builds of an image

Two builds without a cache, the second one in another checkout, whose files have other times and modes. Compared are each file,
folder and link (content, mode, owner, time, target), and the image's configuration, which names its layers.

Written by `make test-layers`, {datetime.now(UTC):%F}; Docker {engine.stdout.strip()}, base `{base()}`, with
`SOURCE_DATE_EPOCH={EPOCH}`.

{table(heads, *(one[:-1] for one in rows))}
"""
        + "".join(f"\n- {line}" for line in found[:50])
    )
    print(*found, *(f"{tag}: {count} files, {differ} differences" for tag, count, differ, *_ in rows), sep="\n")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
