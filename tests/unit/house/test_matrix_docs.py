"""The matrix that is committed is that of today's tests and tables: no feature is missing, no cell says something else."""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from celery_kit.base.target import ROOT
from tests.harness.combinations import COMBINATIONS


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return dict(json.loads((ROOT / "docs/matrix.json").read_text()))


@cache
def features() -> dict[str, str]:
    """Every row that the test files have: its name, and the file's group."""
    return {
        node.name.removeprefix("test_"): path.stem.removeprefix("test_")
        for path in Path(ROOT / "tests/integration").glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_feature_is_in_the_committed_matrix_on_every_combination(committed: dict[str, Any]) -> None:
    assert {name: about["group"] for name, about in committed["features"].items()} == features(), (
        "run 'make test-matrix docs-matrix'"
    )
    found = {(cell["feature"], cell["combination"]) for cell in committed["cells"]}
    expected = {(feature, str(one)) for feature in features() for one in COMBINATIONS}
    assert expected <= found


def test_no_cell_failed_and_each_says_what_the_tables_say(committed: dict[str, Any]) -> None:
    combinations = {str(one): one for one in COMBINATIONS}
    for cell in committed["cells"]:
        limit = combinations[cell["combination"]].limit(cell["feature"])
        where = f"{cell['feature']} on {cell['combination']}: run 'make test-matrix docs-matrix'"
        if limit:
            assert (cell["outcome"], cell["what"], cell["reference"]) == (limit.kind, limit.what, limit.reference), where
        else:
            assert cell["outcome"] in ("works", "by celery-kit"), where


def test_every_limit_is_about_a_feature_and_has_its_reference() -> None:
    for one in COMBINATIONS:
        pairs = (*one.broker.pool_limits.values(), *one.broker.backend_limits.values())
        for table in (one.pool.limits, one.backend.limits, one.broker.limits, *pairs):
            unknown = table.keys() - features().keys()
            assert not unknown, f"limits about features that no test has: {sorted(unknown)}"
            assert all(limit.what and limit.reference for limit in table.values())
