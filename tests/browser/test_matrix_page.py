"""The support matrix as a page, seen in a browser: counted, filtered, a detail opened, readable on a phone."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.integration import report

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    """The matrix of the last run that was committed; `make docs-matrix` renews it."""
    return dict(json.loads((DOCS / "matrix.json").read_text()))


@pytest.fixture
def page(browser: Browser, data: dict[str, Any], tmp_path: Path) -> Page:
    file = tmp_path / "matrix.html"
    file.write_text(report.html(data))
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: pytest.fail(f"the page has an error: {error}"))
    page.goto(file.as_uri())
    return page


def cells(page: Page) -> int:
    return page.locator("td button").count()


def test_every_cell_is_on_the_page(page: Page, data: dict[str, Any]) -> None:
    assert cells(page) == len(data["cells"])
    assert page.locator("#count").inner_text() == f"{len(data['cells'])} cells"
    counts = Counter(cell["outcome"] for cell in data["cells"])
    legend = page.locator("#legend").inner_text()
    assert all(f"{name}: {number}" in legend for name, number in counts.items())


def test_the_axes_filter_the_cells(page: Page, data: dict[str, Any]) -> None:
    page.select_option("select[name=broker]", "redis")
    page.select_option("select[name=pool]", "solo")
    expected = [
        cell for cell in data["cells"] if cell["combination"].startswith("redis-") and cell["combination"].endswith("-solo")
    ]
    assert cells(page) == len(expected) > 0
    page.select_option("select[name=outcome]", "cannot")
    assert cells(page) == sum(cell["outcome"] == "cannot" for cell in expected) > 0


def test_a_cell_opens_what_was_run_and_seen(page: Page, data: dict[str, Any]) -> None:
    cell = next(cell for cell in data["cells"] if cell["outcome"] == "cannot" and cell.get("saw"))
    page.locator(f'button[data-cell="{cell["feature"]} {cell["combination"]}"]').click()
    detail = page.locator("#detail")
    assert detail.is_visible()
    text = detail.inner_text()
    assert all(part in text for part in (cell["what"], cell["reference"], cell["test"], f"{cell['seconds']:g} s"))
    if os.environ.get("SCREENSHOT"):
        page.screenshot(path=str(DOCS / "matrix.png"))
    page.keyboard.press("Escape")
    assert not detail.is_visible()


def test_the_page_is_readable_on_a_phone(browser: Browser, page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390, "the page itself scrolls sideways"
    assert page.locator("tbody th").first.is_visible()


def test_the_page_needs_nothing_from_elsewhere(page: Page) -> None:
    source = page.content()
    assert "src=" not in source.split("<script>")[0] and "<link" not in source
