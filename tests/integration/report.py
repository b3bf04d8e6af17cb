"""The matrix as a table: collected from the tests' reports, written to `reports/matrix.json`, `.md` and `.html`."""

import json
import os
import platform
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from tests.harness.combinations import COMBINATIONS, Combination

PACKAGES = ("celery", "kombu", "amqp", "redis", "eventlet", "gevent")
NOT_TRIED = "·"  # by a run of some cells alone
SIGNS = {"works": "✓", "by celery-kit": "✓+", "differently": "≈", "cannot": "—", "FAILED": "✗"}

_cells: dict[tuple[str, str], dict[str, Any]] = {}
#: How a cell failed that was then tried once more.
_first_tries: dict[tuple[str, str], str] = {}
#: What the servers say of themselves; set when they run.
servers: list[str] = []


def describe(item: pytest.Item, combination: Combination) -> list[tuple[str, object]]:
    """What a cell's report carries, from whichever process it ran in."""
    feature = getattr(item, "originalname", item.name).removeprefix("test_")
    limit = combination.limit(feature)
    by_kit = item.get_closest_marker("by_kit")
    return [
        ("feature", feature),
        ("group", Path(item.path).stem.removeprefix("test_")),
        ("title", (getattr(item.obj, "__doc__", None) or feature).strip().splitlines()[0]),  # type: ignore[attr-defined]
        ("combination", str(combination)),
        ("outcome", limit.kind if limit else "by celery-kit" if by_kit and combination in by_kit.args[0] else "works"),
        ("what", limit.what if limit else by_kit.args[1] if by_kit and combination in by_kit.args[0] else ""),
        ("reference", limit.reference if limit else ""),
        ("test", f"{item.location[0]}::{item.location[2]}"),
    ]


def collect(report: pytest.TestReport) -> None:
    """Take a test's report for the table; a set-up that failed is a cell that FAILED."""
    about: dict[str, Any] = dict(report.user_properties)
    cell = about.get("feature", ""), about.get("combination", "")
    if report.outcome == "rerun":  # type: ignore[comparison-overlap]  # the plugin's own
        _first_tries[cell] = str(report.longrepr)[-1500:]
        return
    if "combination" not in about or (report.when != "call" and not report.failed):
        return
    about["first_try"] = _first_tries.get(cell, "")
    about["seconds"] = round(report.duration, 2)
    if report.failed:
        about |= {"outcome": "FAILED", "what": str(report.longrepr)[-1500:]}
    elif report.skipped:
        about |= {"outcome": "FAILED", "what": "not tried"}
    _cells[cell] = about


def write(folder: Path) -> Iterable[str]:
    """Write the reports; gives the lines for the terminal."""
    if not _cells or os.environ.get("INVERT_LIMITS"):
        return
    combinations = [str(one) for one in COMBINATIONS]
    features: dict[str, dict[str, Any]] = {}
    for cell in _cells.values():
        features.setdefault(cell["feature"], {name: cell[name] for name in ("group", "title")})
    counts = Counter(cell["outcome"] for cell in _cells.values())
    about = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": "make test-matrix",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "servers": servers,
        "counts": dict(counts),
    }
    folder.mkdir(exist_ok=True)
    data = {"about": about, "combinations": combinations, "features": features, "cells": list(_cells.values())}
    (folder / "matrix.json").write_text(json.dumps(data, indent=1, ensure_ascii=False))
    (folder / "matrix.md").write_text(markdown(data))
    (folder / "matrix.html").write_text(html(data))
    yield from terminal(data)
    yield f"{len(features)} features x {len(combinations)} combinations, {len(_cells)} cells: " + ", ".join(
        f"{counts[name]} {name}" for name in SIGNS
    )
    for feature, combination in sorted(_first_tries):
        yield f"needed a second try: {feature} on {combination}"
    yield f"{folder}/matrix.html, .md and .json have the details"


def _sign(data: dict[str, Any], feature: str, combination: str) -> str:
    cell = next((c for c in data["cells"] if (c["feature"], c["combination"]) == (feature, combination)), None)
    return SIGNS[cell["outcome"]] if cell else NOT_TRIED


def terminal(data: dict[str, Any]) -> Iterable[str]:
    """A row a feature, a column a combination, numbered."""
    yield ""
    yield from (f"  {number:>2} {name}" for number, name in enumerate(data["combinations"], 1))
    yield " " * 44 + "".join(f"{number:>3}" for number in range(1, len(data["combinations"]) + 1))
    for feature, about in sorted(data["features"].items(), key=lambda item: item[1]["group"]):
        signs = "".join(f"{_sign(data, feature, one):>3}" for one in data["combinations"])
        yield f"{about['group']:<9} {feature:<34}{signs}"
    yield "  ".join(f"{sign} {name}" for name, sign in SIGNS.items())


def _groups(data: dict[str, Any], stacks: list[str]) -> Iterable[str]:
    """A row a group of features, a column a broker and backend: how many cells of the five pools ended how."""
    group_of = {name: about["group"] for name, about in data["features"].items()}
    counts = Counter((group_of[c["feature"]], c["combination"].rpartition("-")[0], c["outcome"]) for c in data["cells"])
    yield "| features | " + " | ".join(stack.replace("-", " + ") for stack in stacks) + " |"
    yield "|" + " --- |" * (len(stacks) + 1)
    for group, features in sorted(Counter(group_of.values()).items()):
        cells = (
            " ".join(f"{sign}&nbsp;{counts[group, stack, name]}" for name, sign in SIGNS.items() if counts[group, stack, name])
            for stack in stacks
        )
        yield f"| {group} ({features}) | " + " | ".join(cells) + " |"
    totals = Counter(cell["outcome"] for cell in data["cells"])
    yield ""
    yield "Cells of all pools together. " + ", ".join(f"{sign} {name}: {totals[name]}" for name, sign in SIGNS.items()) + "."


def markdown(data: dict[str, Any]) -> str:
    """The cells counted by group; a column a broker and backend, a sign a pool; each limit once with its reference."""
    stacks = list(dict.fromkeys(one.rpartition("-")[0] for one in data["combinations"]))
    pools = list(dict.fromkeys(one.rpartition("-")[2] for one in data["combinations"]))
    about = data["about"]
    lines = [
        "# The support matrix",
        "",
        f"Written by `{about['command']}` on {about['date']}; Python {about['versions']['python']} on the producer's side, "
        + ", ".join(f"{name} {about['versions'][name]}" for name in PACKAGES)
        + "; "
        + ", ".join(about["servers"])
        + ".",
        "",
        ", ".join(f"{sign} {name}" for name, sign in SIGNS.items()) + ".",
        "",
        *_groups(data, stacks),
        "",
        "## Each feature",
        "",
    ]
    lines += ["| feature | " + " | ".join(f"{s.replace('-', ' + ')}: {', '.join(pools)}" for s in stacks) + " |"]
    lines += ["|" + " --- |" * (len(stacks) + 1)]
    for feature, row in sorted(data["features"].items(), key=lambda item: item[1]["group"]):
        signs = (" ".join(_sign(data, feature, f"{s}-{pool}") for pool in pools) for s in stacks)
        lines.append(f"| *{row['group']}* {feature.replace('_', ' ')} | " + " | ".join(signs) + " |")
    notes: dict[tuple[str, str, str, str], list[str]] = {}
    for cell in data["cells"]:
        if cell["what"]:
            key = (cell["feature"], cell["outcome"], cell["what"], cell["reference"])
            notes.setdefault(key, []).append(cell["combination"])
    lines += ["", "## What happens instead", ""]
    for (feature, outcome, what, reference), where in sorted(notes.items()):
        lines.append(
            f"- **{feature.replace('_', ' ')}** {SIGNS[outcome]} {what} ({reference or 'celery-kit'}) On: {', '.join(where)}."
        )
    return "\n".join(lines) + "\n"


def html(data: dict[str, Any]) -> str:
    """One page that needs nothing else."""
    page = Path(__file__).with_name("matrix.html").read_text()
    return page.replace("/*DATA*/null", json.dumps(data, ensure_ascii=False).replace("</", "<\\/")).replace(
        "<!--DATE-->", escape(data["about"]["date"])
    )
