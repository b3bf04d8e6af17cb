"""What the suite's runs have found, and docs/reports/upstream.md of it."""

import json
import re
from collections import defaultdict
from datetime import UTC, datetime
from importlib.metadata import version

from filelock import FileLock

from celery_kit.base.target import ROOT
from tests.upstream.reasons import REASONS

HOME = ROOT / ".kit" / "upstream"
REPORT = ROOT / "docs" / "reports" / "upstream.md"
CELERY = version("celery")
#: By side, the column's title.
COLUMNS = {
    "fast": "the kit, `ENGINE=fast`",
    "plain": "the kit, `ENGINE=plain`",
    "celery": "plain Celery",
    "bare": "plain Celery, plain brokers",
}
#: Whose outcomes those of a side are held against.
AGAINST = {"fast": "celery", "plain": "celery", "celery": "bare"}

#: By test, how it ended.
Outcomes = dict[str, str]


class Run:
    """Outcomes by pair, worker, module and side, kept in a file: an hour's work is done in parts."""

    file = HOME / "outcomes.json"

    @property
    def kept(self) -> dict[str, dict[str, Outcomes]]:
        return json.loads(self.file.read_text()) if self.file.exists() else {}

    def has(self, pair: str, worker: str, side: str, module: str) -> bool:
        return side in self.kept.get(f"{pair} {worker} {module}", {})

    def keep(self, pair: str, worker: str, side: str, module: str, outcomes: Outcomes) -> None:
        with FileLock(self.file.with_suffix(".lock")):
            kept = self.kept
            kept.setdefault(f"{pair} {worker} {module}", {})[side] = outcomes
            self.file.write_text(json.dumps(kept))


def _counts(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return "-"
    kinds = list(outcomes.values())
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "no test"


def _rows(found: Run) -> list[str]:
    kept = found.kept
    for key, outcomes in list(kept.items()):
        whole = kept.setdefault(f"{key.rpartition(' ')[0]} **all**", {})
        for side, more in outcomes.items():
            whole[side] = {**whole.get(side, {}), **more}
    sides = [side for side in COLUMNS if any(side in one for one in kept.values())]
    titles = ["broker + backend", "worker", "module", *(COLUMNS[side] for side in sides)]
    rows = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(titles)}"]
    for key, outcomes in sorted(kept.items()):
        rows.append(f"| {' | '.join([*key.split(), *(_counts(outcomes.get(side)) for side in sides)])} |")
    return rows


def differing(found: Run) -> dict[tuple[str, str, str, str], list[str]]:
    """By test, side, and how it ended there and on the side that it is held against: the pairs and workers."""
    where = defaultdict(list)
    for key, outcomes in sorted(found.kept.items()):
        pair, worker, _ = key.split()
        for side, other in AGAINST.items():
            if side not in outcomes or other not in outcomes:
                continue
            here, there = outcomes[side], outcomes[other]
            for test in sorted(here.keys() | there.keys()):
                ends = here.get(test, "not run"), there.get(test, "not run")
                if ends[0] != ends[1]:
                    where[test.removeprefix("t.integration."), side, *ends].append(f"{pair} {worker}")
    return where


def reason(test: str, side: str, where: str) -> str | None:
    """What a row of the table says of a test that ends otherwise there."""
    fit = (one for one in REASONS if side in one.sides and re.search(one.tests, test) and re.search(one.where, where))
    return next((one.why for one in fit), None)


def write(found: Run) -> int:
    """Write the report; gives how many tests end otherwise and have no reason."""
    by_reason: dict[str | None, list[str]] = defaultdict(list)
    for (test, side, here, there), everywhere in differing(found).items():
        whys = {where: reason(test, side, where) for where in everywhere}
        for why in dict.fromkeys(whys.values()):
            where = ", ".join(where for where in everywhere if whys[where] == why)
            by_reason[why].append(f"- `{test}`, {COLUMNS[side]}: {here}, {there} on {COLUMNS[AGAINST[side]]} ({where})")
    unnamed = by_reason.pop(None, [])
    workers = sorted({key.split()[1] for key in found.kept})
    parts = [
        "# Celery's own integration suite with the kit installed",
        f"Celery {CELERY}, kombu {version('kombu')}, redis-py {version('redis')}; "
        f"`make test-upstream KIT=1 WORKERS={','.join(workers)}`, "
        f"{datetime.now(UTC):%Y-%m-%d}. `celery_kit.install(app)` is called on the suite's own app; the suite's settings win "
        "over the kit's, and its fixtures are as they were. The servers are those of compose.rabbitmq.yaml, on both "
        "sides. Without `KIT=1` there are two sides more: the kit with `ENGINE=plain`, and plain Celery on the same images "
        "without configuration. A process a module; what failed was run again. The suite's worker is on `prefork` in the "
        "tests' process, the suite's own choice; on `solo` there; or in a `process` of its own on prefork, as users have it. "
        "`-`: not run.",
        "\n".join(_rows(found)),
        "## What ends otherwise, and why",
    ]
    parts += [f"**{why}**\n\n" + "\n".join(lines) for why, lines in by_reason.items()]
    if unnamed:
        parts.append("**No reason is known**\n\n" + "\n".join(unnamed))
    if not by_reason and not unnamed:
        parts.append("Nothing.")
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text("\n\n".join(parts) + "\n")
    return len(unnamed)
