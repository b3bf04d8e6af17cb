"""Take the last run of the benchmark into docs: `make docs-bench`. A run of some sections renews those, with its date."""

import json
from typing import Any

from bench import report
from celery_kit.base.target import ROOT


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the sections of `new` in place of its own; `runs`: by section, what is said of the run that measured it."""
    runs = dict(old.get("runs", {}))
    for data in (old, new):
        measured = {one["section"] for one in data["trials"]}
        runs |= {section: data["about"] for section in measured if data is new or section not in runs}
    kept = [one for one in old["trials"] if one["section"] not in {trial["section"] for trial in new["trials"]}]
    trials = kept + new["trials"]
    return {"about": new["about"], "runs": runs, "trials": trials}


def main() -> None:
    docs = ROOT / "docs"
    old, new = (json.loads((folder / "bench.json").read_text()) for folder in (docs, ROOT / "reports"))
    (docs / "bench.json").write_text(json.dumps(merged(old, new), indent=1) + "\n")
    report.draw(docs / "bench.json")


if __name__ == "__main__":
    main()
