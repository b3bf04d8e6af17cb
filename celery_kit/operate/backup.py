"""`make backup` and `make restore`: what a stack's servers hold, in one file, and from it in an empty stack.

The file is a tar archive with `backup.json`, which says what it is, and one of each volume. The row of a product says how its
server is copied (`Copy` in celery_kit/brokers/contract.py).
"""

import hashlib
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import click
import yaml

from celery_kit.base.refusals import choose, refuse, why_not_writable
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.brokers.contract import Copy
from celery_kit.operate.current import running_stack, stack_of
from celery_kit.operate.groups import shown
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.volumes import DATA, Place, of_running, to_be
from celery_kit.results import BACKENDS, room

#: The version of the archive's form. Another one is refused.
FORMAT = 1
ABOUT, MOST_ABOUT = "backup.json", 1024 * 1024


@dataclass(frozen=True)
class Part:
    """The archive of a volume: its length in bytes, its SHA-256, and the version of its server; empty: it has none."""

    bytes: int
    sha256: str
    version: str


@dataclass(frozen=True)
class About:
    """What an archive is of. `parts`: by volume."""

    broker: str
    backend: str
    when: str
    parts: Mapping[str, Part]
    format: int = FORMAT


def copied(broker: str) -> Copy | None:
    """How a broker's server is copied; None if it cannot be, or if its stack has several servers with a volume each."""
    row = BROKERS[broker]
    if not row.compose_file or not row.copy:
        return row.copy
    return row.copy if row.copy.volume in yaml.safe_load((ROOT / row.compose_file).read_text())["volumes"] else None


def copies(broker: str, backend: str) -> dict[str, Copy]:
    """By volume, how each server of a stack is copied, and what tasks keep. Refuses a broker that cannot be copied."""
    own = copied(broker) or refuse(f"BROKER={broker} cannot be copied by 'make backup' (docs/backup.md)")
    kept = BACKENDS[backend].copy if backend and not BROKERS[broker].results_url else None
    return {one.volume: one for one in (own, kept, DATA) if one}


def write(file: Path, place: Place, rows: Mapping[str, Copy], versions: Mapping[str, str], about: About) -> About:
    """Write the archive of these volumes, which only its owner may read. Returns what it is of, with its parts.

    `versions`: those of their servers, by volume.
    """
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as folder:
        parts = {}
        for volume, copy in rows.items():
            its = Path(folder, f"{volume}.tar")
            with tarfile.open(its, "w") as out:
                place.read(copy, out)
                if missing := {*copy.moved.values()} - {*out.getnames()}:
                    refuse(f"{volume} has no {', '.join(missing)} to copy: its server has not saved it there")
            with its.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            parts[volume] = Part(its.stat().st_size, digest, versions[volume])
        about = replace(about, parts=parts)
        whole = Path(folder, "whole.tar")
        with (
            open(os.open(whole, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as stream,
            tarfile.open(fileobj=stream, mode="w") as tar,
        ):
            text = json.dumps(asdict(about), indent=1).encode()
            member = tarfile.TarInfo(ABOUT)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
            for volume in parts:
                tar.add(Path(folder, f"{volume}.tar"), arcname=f"{volume}.tar")
        whole.rename(file)
    return about


def read(file: Path) -> About:
    """What an archive is of. Refuses (one line, exit code 2) one that is not whole, or of another version of the kit."""
    try:
        with tarfile.open(file, "r:") as tar:
            text = _content(tar, ABOUT).read(MOST_ABOUT)
            found = json.loads(text)
            if found["format"] != FORMAT:
                return _refuse(file, f"its format is {json.dumps(found['format'])}, and this version of the kit has {FORMAT}")
            about = About(**{**found, "parts": {name: Part(**part) for name, part in found["parts"].items()}})
            for name, part in about.parts.items():
                with _content(tar, f"{name}.tar") as content:
                    if hashlib.file_digest(content, "sha256").hexdigest() != part.sha256:
                        return _refuse(file, f"{name} is not what was written: its SHA-256 differs")
            return about
    except OSError as error:
        return _refuse(file, error.strerror or "it cannot be read")
    except (tarfile.TarError, LookupError, TypeError, AttributeError, ValueError, RecursionError):
        return _refuse(file, "it is no file of 'make backup', or not a whole one")


def _refuse(file: Path, why: str) -> NoReturn:
    refuse(f"FILE={shown(file)} is not restored, and nothing was changed: {why}")


def _content(tar: tarfile.TarFile, name: str) -> io.BufferedReader:
    """A file of an archive. Raises KeyError if it has none of that name."""
    if isinstance(content := tar.extractfile(name), io.BufferedReader):
        return content
    raise KeyError(name)


def _older(one: str, other: str) -> bool:
    """Whether a server of version `one` cannot read the data of version `other`: it is older, or of another generation."""
    mine, theirs = ([int(number) for number in version.split(".")] for version in (one, other))
    return mine[0] != theirs[0] or mine < theirs


@click.command()
@click.option("--out", envvar="OUT", help="the file; default: in backups/, by the stack's name and the time")
@click.option(
    "--stop", is_flag=True, envvar="STOP", help="stop workers, beat and broker for the copy, where the broker needs it"
)
def backup(out: str | None, stop: bool) -> None:
    """Copy what the running stack's servers hold to a file, with their users and passwords."""
    stack = running_stack()
    environ = stack.environment(stack.inspected(), "admin")
    broker, results = environ["BROKER"], room(environ["CELERY_RESULT_BACKEND"])
    backend = results.name if results else ""
    rows = copies(broker, backend)
    if not stop and any(one.version and not one.save for one in rows.values()):
        refuse(f"{broker} can be copied only while it is stopped; STOP=1 stops workers, beat and broker, and starts them again")
    now = datetime.now(UTC)
    name = stack.project if isinstance(stack, Compose) else broker
    file = ROOT / (out or f"backups/{name}-{now:%Y%m%d-%H%M%S}.tar")
    if not out:
        file.parent.mkdir(mode=0o700, exist_ok=True)
    if why := "it is there" if file.exists() else why_not_writable(file):
        refuse(f"OUT={shown(file)} cannot be written: {why}")
    place = of_running(stack)
    about = About(broker, backend, now.isoformat(timespec="seconds"), {})
    versions = {volume: place.version(copy) if copy.version else "" for volume, copy in rows.items()}
    with ExitStack() as still:
        if stop:
            still.enter_context(place.stopped("worker", "beat"))
        _save(rows, broker, environ)
        began = time.monotonic()
        if stop:
            still.enter_context(place.stopped("broker"))
        about = write(file, place, rows, versions, about)
    took = time.monotonic() - began
    click.echo(f"{shown(file)}: {', '.join(f'{name} {part.bytes / 1e6:.1f} MB' for name, part in about.parts.items())}")
    click.echo(
        f"The broker {f'was stopped for {took:.0f} s' if stop else 'ran on'}. The file has messages, results and passwords:"
    )
    click.echo(f"only its owner may read it (mode 600). Next:\n  make restore FILE={shown(file)}    once the stack is down")


def _save(rows: Mapping[str, Copy], broker: str, environ: Mapping[str, str]) -> None:
    """Have each server that can be copied while it runs write what it holds. Refuses if one does not."""
    own = BROKERS[broker].copy
    for copy in rows.values():
        if copy.save:
            try:
                copy.save(environ["CELERY_BROKER_URL" if copy is own else "CELERY_RESULT_BACKEND"])
            except Exception as error:  # of its client, which is the product's own
                refuse(f"the server of {copy.volume} has not saved its data: {type(error).__name__}: {error}")


@click.command()
@click.option("--file", "given", envvar="FILE", help="what 'make backup' wrote")
@click.option("--yes", is_flag=True, envvar="YES", help="in the place of the stack's data, without asking")
def restore(given: str | None, yes: bool) -> None:
    """Fill the servers of a stack that is down with what a file of `make backup` has."""
    if not given:
        refuse("FILE is missing; for example: make restore FILE=backups/celery-kit.tar")
    about = read(file := ROOT / given)
    broker = os.environ.get("BROKER") or about.broker
    if broker != about.broker:
        refuse(f"FILE={shown(file)} is of BROKER={about.broker}, and BROKER={broker} is given: it fits that broker alone")
    rows = copies(choose("BROKER", broker, BROKERS), choose("BACKEND", about.backend, BACKENDS))
    if {*rows} != {*about.parts}:
        refuse(f"FILE={shown(file)} has {', '.join(about.parts)}; {broker} has {', '.join(rows)}")
    stack = stack_of(broker)
    if stack.exists():
        refuse("the stack is there; 'make down' takes it down, and then its data can be replaced")
    place = to_be(stack, about.backend)
    with place.alone() as alone:
        if not alone:
            refuse("an embedded stack has just been started; 'make down' stops it")
        for volume, part in about.parts.items():
            if part.version and _older(now := place.version(rows[volume]), part.version):
                refuse(f"FILE={shown(file)}: {volume} is of version {part.version}; that of the stack, {now}, cannot read it")
        there = place.filled(about.parts)
        if (
            there
            and not yes
            and not (sys.stdin.isatty() and click.confirm(f"Replace all data in {', '.join(there)}?", err=True))
        ):
            refuse(f"nothing was changed: there is data in {', '.join(there)}; YES=1 replaces it")
        place.clear(about.parts)
        with tarfile.open(file, "r:") as tar:
            for volume in about.parts:
                place.write(volume, _content(tar, f"{volume}.tar"))
    click.echo(f"{shown(file)} of {about.when}: restored, {', '.join(about.parts)}. Next:")
    click.echo(f"  make up BROKER={broker} BACKEND={about.backend}")


COMMANDS = (backup, restore)
