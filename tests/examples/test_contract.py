"""`make contract` and Pydantic, which an example's environment has: one side's values are tried on the other's models."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from celery_kit.operate.contract import NEW, OLD, Side, compare
from celery_kit.operate.look import interface

pytestmark = pytest.mark.timeout(900)  # seconds: the first test installs what all of the examples need
SHOP = """
from __future__ import annotations
from typing import Literal
from celery import Celery
from pydantic import BaseModel

app = Celery("shop", broker="memory://")

class Line(BaseModel):
    article: str
    number: int = 1

class Order(BaseModel):
    lines: list[Line]
    kind: Literal["web", "shop"] = "web"

@app.task(pydantic=True, name="bill", bind=True, autoretry_for=(OSError,))
def bill(self, order: Order, again: Order | None = None): pass

@app.task(pydantic=True, name="count")
def count(line: Line): pass

@app.task(name="price")
def price(line: Line): pass
"""
NEW_SHOP = SHOP.replace('"web", "shop"', '"web"').replace("number: int = 1", "number: int = 1\n    cents: int")


def asked(python: Path, folder: Path, given: str = "") -> Any:
    environ = {**os.environ, "CELERY_APP": "shop"}
    argv = [str(python), "-P", interface.__file__]
    done = subprocess.run(argv, cwd=folder, env=environ, input=given, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_values_that_the_other_sides_models_refuse_are_breaks(python: Path, tmp_path: Path) -> None:
    """A new field without a default, in a model within a model; a choice that is gone. Old models ignore a new field."""
    folders = [tmp_path / "old", tmp_path / "new"]
    for folder, text in zip(folders, (SHOP, NEW_SHOP), strict=True):
        folder.mkdir()
        (folder / "shop.py").write_text(text)
    old, new = (asked(python, folder) for folder in folders)
    refused = {
        OLD: asked(python, folders[1], json.dumps(old["values"])),
        NEW: asked(python, folders[0], json.dumps(new["values"])),
    }
    before, after = (Side(one, frozenset(one["consumed"])) for one in (old, new))
    found = sorted(str(one).partition("; ")[0] for one in compare(before, after, refused))
    missing, choice = "is refused: lines.0.cents: Field required", "is refused: kind: Input should be 'web'"
    assert found == [
        f"{OLD}: bill: again {choice}",
        f"{OLD}: bill: again {missing}",
        f"{OLD}: bill: order {choice}",
        f"{OLD}: bill: order {missing}",
        f"{OLD}: count: line is refused: cents: Field required",
    ]
