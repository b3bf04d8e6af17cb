"""Take the cells of the last matrix run into docs: `make docs-matrix`. A run of some rows renews those, with its date."""

import json
from collections import Counter
from typing import Any

from celery_kit.base.target import ROOT
from tests.integration.report import html, markdown
from tests.unit.house.test_matrix_docs import features

#: What the page has in the documentation alone, below its title.
PAGE = """[A page to filter and to click](matrix.html) has each cell: its test, what it observed, and how long it took.

![The support matrix, with one cell opened](matrix.png)

"""


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """`old` with the cells of `new` in place of its own, and without the rows that no test has any more."""
    rows, cells = features(), {}
    for data in (old, new):
        for cell in data["cells"]:
            if cell["feature"] in rows:
                cells[cell["feature"], cell["combination"]] = {"run": data["about"]["date"], **cell}
    known = {name: about for name, about in {**old["features"], **new["features"]}.items() if name in rows}
    runs = len({cell["run"] for cell in cells.values()})
    about = {**new["about"], "counts": dict(Counter(cell["outcome"] for cell in cells.values()))}
    about["command"] = "make test-matrix" if runs == 1 else f"make test-matrix, in {runs} parts; each cell says when"
    return {"about": about, "combinations": old["combinations"], "features": known, "cells": list(cells.values())}


def main() -> None:
    docs = ROOT / "docs"
    data = merged(*(json.loads((folder / "matrix.json").read_text()) for folder in (docs, ROOT / "reports")))
    (docs / "matrix.json").write_text(json.dumps(data, indent=1, ensure_ascii=False))
    title, _, rest = markdown(data).partition("\n\n")
    (docs / "matrix.md").write_text(f"{title}\n\n{PAGE}{rest}")
    (docs / "matrix.html").write_text(html(data))


if __name__ == "__main__":
    main()
