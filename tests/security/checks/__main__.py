"""The table on the kit, on plain Celery, and with each weakness planted: docs/reports/checks.md.

`make test-checks`; BROKER= chooses one, ONLY= rows by parts of their ids, SIDES=kit or plain a column. It asserts nothing:
`make test-security` does, for the kit. What an earlier run has found stays in the report.
"""

import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celery_kit.base.refusals import choose
from celery_kit.base.target import ROOT
from testbed.servers import SERVERS
from tests.security.checks import TABLE
from tests.security.checks.contract import AREAS, KIT, PLAIN, REPORT, AbsentError, Check, Subject
from tests.security.checks.stacks import of_kit, of_plain
from tests.security.test_containers import docker

NOTES = ROOT / "reports/checks.json"
PLANTED = "weakness planted"
#: By row, column and broker: what was found.
Notes = dict[str, dict[str, dict[str, str]]]


def tried(row: Check, subject: Subject) -> str:
    """What an attempt finds, in a few words; "no" if it is not possible."""
    try:
        found = row.attempt(subject)
    except AbsentError as error:
        return f"- {error}"
    except Exception as error:
        traceback.print_exc()
        return f"? {type(error).__name__}: {str(error)[:80]}"
    return f"yes: {_short(found)}" if found else "no"


def _short(found: object) -> str:
    if isinstance(found, dict):
        found = ", ".join(sorted(map(str, found)))
    elif isinstance(found, list | tuple | set):
        found = ", ".join(map(str, found))
    return "" if found is True else " ".join(str(found).split()).replace("|", " ")[:70]


def planted(row: Check, subject: Subject) -> str:
    """What an attempt finds with its weakness planted."""
    if not row.plant:
        return ""
    try:
        with row.plant.made(subject) as weak:
            return f"{tried(row, weak)} @ {row.plant.name}"
    except Exception as error:
        traceback.print_exc()
        return f"? {type(error).__name__}: {str(error)[:80]} @ {row.plant.name}"


def note(notes: Notes, column: str, broker: str, rows: list[Check], look: Callable[[Check], str]) -> None:
    """Try rows, and note what was found."""
    for row in rows:
        began = time.monotonic()
        said = look(row)
        notes.setdefault(row.id, {}).setdefault(column, {})[broker] = said
        print(f"{broker:8} {column:16} {row.id[:100]:100} {said[:60]} ({time.monotonic() - began:.0f} s)", flush=True)
        NOTES.parent.mkdir(exist_ok=True)
        NOTES.write_text(json.dumps(notes, indent=1))


def cell(found: dict[str, str]) -> str:
    """What a column says of a row, by broker; the brokers are named where they differ."""
    said = {broker: words for broker, words in found.items() if not words.startswith("-")}
    if not said:
        return "-"
    kinds = {words.partition(":")[0].partition(" ")[0] for words in said.values()}
    if kinds == {"no"}:
        return "no"
    several = len(set(said.values())) > 1
    parts: dict[str, list[str]] = {}
    for broker, words in said.items():
        text = words.replace("yes:", "**possible**:", 1).rstrip(": ") if words.startswith("yes") else words
        parts.setdefault(text, []).append(broker)
    return "; ".join(f"{text} ({', '.join(brokers)})" if several else text for text, brokers in parts.items())


def weakness(found: dict[str, str]) -> str:
    """What was seen with the weakness planted."""
    seen: dict[str, set[str]] = {}
    for words in found.values():
        if words:
            said, _, name = words.partition(" @ ")
            seen.setdefault(name, set()).add("found" if said.startswith("yes") else f"**not found** ({said})")
    return "; ".join(f"{name}: {', '.join(sorted(said))}" for name, said in seen.items()) or "-"


def write(notes: Notes) -> None:
    """Write the report."""
    rows = [row for row in TABLE.values() if row.id in notes]
    plain = {row.id for row in rows if "yes" in str(notes[row.id].get(PLAIN))}
    red = {row.id for row in rows if "yes" in str(notes[row.id].get(PLANTED))} | plain
    kit = [row for row in rows if all(said == "no" for said in notes[row.id].get(KIT, {"": "?"}).values())]
    versions = ", ".join(f"{name} {version(name)}" for name in ("celery", "kombu", "amqp", "redis", "flower"))
    text = f"""# What must not be possible

Each row is an attempt on a running stack: `make test-checks`, {datetime.now(UTC):%F}, Docker {_engine()}; {versions}.

- **celery-kit**: a stack of `make up POOL=prefork MONITOR=1`, on each broker, without a choice of any setting; the rows of
  encryption with `SECURE=mutual`.
- **plain Celery**: the server's image as it is, with its default users; a worker by `celery -A proj worker`, beat and Flower,
  as the documentation starts them: `tests/security/plain/`. The same base image, the same versions.
- **weakness planted**: the same attempt on a stack of the kit in which one thing was made as it should not be.

`-`: there is nothing of the kind. Of {len(rows)} attempts, {len(kit)} are not possible on celery-kit; {len(plain)} are
possible on plain Celery; {len(red)} were seen to succeed, with a weakness planted or on plain Celery. `make test-security`
asserts it for the kit; the rows are in `tests/security/checks/`.
"""
    columns = f"| must not be possible | {KIT} | {PLAIN} | {PLANTED} |"
    for area in AREAS:
        text += f"\n## {area.capitalize()}\n\n{columns}\n| --- | --- | --- | --- |\n"
        for row in (row for row in rows if row.area == area):
            seen = notes[row.id]
            cells = (cell(seen.get(KIT, {})), cell(seen.get(PLAIN, {})), weakness(seen.get(PLANTED, {})))
            text += f"| {row.what.replace('|', ' ')} | {' | '.join(cells)} |\n"
    REPORT.write_text(text)


def _engine() -> str:
    return docker("version", "--format", "{{.Server.Version}}")


def main() -> None:
    """Try the table, and write the report."""
    chosen, only = os.environ.get("BROKER"), os.environ.get("ONLY", "").split(",")
    brokers = [choose("BROKER", chosen, SERVERS)] if chosen else list(SERVERS)
    sides = os.environ.get("SIDES", "kit,plain").split(",")
    notes: Notes = json.loads(NOTES.read_text()) if NOTES.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for broker in brokers:
            rows: Any = [
                row
                for row in TABLE.values()
                if any(part in row.id for part in only) and (not row.brokers or broker in row.brokers)
            ]
            for kind in ("stack", "secure"):
                those = [row for row in rows if row.kind == kind]
                if "kit" in sides and those:
                    with of_kit(broker, folder / f"{broker}-{kind}", kind) as subject:
                        note(notes, KIT, broker, those, lambda row, subject=subject: tried(row, subject))  # type: ignore[misc]
                        note(notes, PLANTED, broker, those, lambda row, subject=subject: planted(row, subject))  # type: ignore[misc]
            if "plain" in sides:
                with of_plain(broker, folder / f"{broker}-plain") as subject:
                    note(notes, PLAIN, broker, rows, lambda row, subject=subject: tried(row, subject))  # type: ignore[misc]
    write(notes)


if __name__ == "__main__":
    main()
