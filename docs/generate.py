"""Write the tables in README.md and docs/ anew from the code: `make docs`. `--check` only says whether they are stale."""

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.backends import BACKENDS
from app.brokers import BROKERS
from app.pools import POOLS
from tests.integration.report import SIGNS

ROOT = Path(__file__).resolve().parents[1]


def _table(*rows: tuple[str, ...]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|" + " --- |" * len(rows[0]), *body])


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def pools() -> str:
    return _table(
        ("POOL", "made for", "tasks at once", "time limits enforced", "answers during a task"),
        *(
            (f"`{p.name}`", p.for_work, str(p.concurrency or "one a CPU core"), p.time_limits, _yes(p.answers_while_busy))
            for p in POOLS.values()
        ),
    )


def backends() -> str:
    return _table(
        ("BACKEND", "a result is read by", "chords", "a server of its own"),
        *(
            (
                f"`{b.name}`",
                "any process, by its id" if b.read_elsewhere else "the process that sent the task",
                "yes" if b.chords else "no: Celery raises NotImplementedError",
                _yes(b.has_server),
            )
            for b in BACKENDS.values()
        ),
    )


def combinations() -> str:
    """Broker x backend by pool; each cell is a combination that `make test-matrix` runs."""
    stacks = [broker for broker in BROKERS.values() if broker.compose_file]
    return _table(
        ("BROKER", "BACKEND", *(f"`{pool}`" for pool in POOLS)),
        *(
            (
                f"`{broker.name}`",
                f"`{backend.name}`",
                *("tested" if backend.chords else "tested, without chords" for _ in POOLS),
            )
            for broker in stacks
            for backend in BACKENDS.values()
        ),
    )


def matrix() -> str:
    """A row a group, a column a broker and backend: how many cells ended how, in the committed run."""
    data = json.loads((ROOT / "docs/matrix.json").read_text())
    stacks = list(dict.fromkeys(name.rpartition("-")[0] for name in data["combinations"]))
    counts = Counter(
        (data["features"][cell["feature"]]["group"], cell["combination"].rpartition("-")[0], cell["outcome"])
        for cell in data["cells"]
    )
    groups = sorted({group for group, _, _ in counts})
    features = Counter(feature["group"] for feature in data["features"].values())
    return (
        _table(
            ("features", *(stack.replace("-", " + ") for stack in stacks)),
            *(
                (
                    f"{group} ({features[group]})",
                    *(
                        " ".join(
                            f"{sign}&nbsp;{counts[group, stack, name]}"
                            for name, sign in SIGNS.items()
                            if counts[group, stack, name]
                        )
                        for stack in stacks
                    ),
                )
                for group in groups
            ),
        )
        + "\n\n"
        + _about(data)
    )


def _about(data: dict[str, Any]) -> str:
    about = data["about"]
    signs = ", ".join(f"{sign} {name}: {about['counts'].get(name, 0)}" for name, sign in SIGNS.items())
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    run = f"Run by `{about['command']}`, {about['date'][:10]}; {versions}; {', '.join(about['servers'])}."
    return f"Cells of all five pools together. {signs}. {run}"


TABLES: dict[str, Callable[[], str]] = {table.__name__: table for table in (pools, backends, combinations, matrix)}


def renewed(text: str) -> str:
    """`text` with every part between `<!-- table: NAME -->` and `<!-- end -->` written anew."""
    return re.sub(
        r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)",
        lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}",
        text,
        flags=re.DOTALL,
    )


def main() -> None:
    stale = [
        path for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if renewed(path.read_text()) != path.read_text()
    ]
    if "--check" in sys.argv:
        sys.exit(f"stale, run 'make docs': {', '.join(path.name for path in stale)}" if stale else 0)
    for path in stale:
        path.write_text(renewed(path.read_text()))


if __name__ == "__main__":
    main()
