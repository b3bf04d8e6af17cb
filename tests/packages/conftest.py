"""Each side with a package beside it: workers of plain Celery and of the kit on either engine, in an environment of theirs."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest

from testbed.environments import PACKAGES
from tests.compat.conftest import place, places  # noqa: F401
from tests.compat.rig import SIDES, Place, Side, worker
from tests.packages.table import TABLE

Started = Callable[..., AbstractContextManager[Side]]
Scenario = Callable[[Callable[..., AbstractContextManager[Side]]], Any]


@pytest.fixture(scope="session", autouse=True)
def environment() -> None:
    PACKAGES.prepare()


@pytest.fixture
def outcomes(place: Place) -> Callable[..., dict[str, Any]]:  # noqa: F811
    """outcomes(scenario): what `scenario(start)` gives on each side; `start(case, …)` gives a side whose worker runs."""

    def of(scenario: Scenario) -> dict[str, Any]:
        found = {}
        for name in SIDES:

            @contextmanager
            def start(case: str, *options: str, pool: str = "prefork", side: str = name, **environ: str) -> Iterator[Side]:
                given = {"CASES": "tests.packages.cases", "CASE": case, "LOCKS": place.results, **environ}
                with worker(side, place, pool, *options, interpreter=PACKAGES.command("python"), **given) as one:
                    try:
                        yield one
                    except BaseException as error:
                        error.add_note(f"{side}'s worker on {place} said:\n{one.said[-4000:]}")
                        raise

            found[name] = scenario(start)
        return found

    return of


def judge(package: str, found: dict[str, Any], expected: Any, kits: Any = None) -> None:
    """Plain Celery gives what is expected, and so does the kit, or `kits` where the table says that it works otherwise."""
    assert found == dict.fromkeys(SIDES, expected if kits is None else kits) | {SIDES[0]: expected}
    assert (TABLE[package].outcome == "works") == (kits is None)
