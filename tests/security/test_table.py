"""Each row of the table of what must not be possible: it is not, on a stack of the kit; and the attempt succeeds where it is.

The table, and how to add a row: tests/security/checks/. The same on plain Celery: `make test-checks`.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from testbed.servers import SERVERS
from tests.security.checks import TABLE
from tests.security.checks.contract import AREAS, Check, Subject
from tests.security.checks.stacks import of_kit

KINDS = ("stack", "secure")


@pytest.fixture(scope="module", params=[f"{broker}-{kind}" for kind in KINDS for broker in SERVERS])
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Subject, str]]:
    broker, _, kind = request.param.partition("-")
    with of_kit(broker, tmp_path_factory.mktemp(request.param), kind) as one:
        yield one, kind


def rows(subject: tuple[Subject, str]) -> list[Check]:
    one, kind = subject
    return [row for row in TABLE.values() if row.is_for(one.broker, kind)]


def test_the_table_is_one() -> None:
    """In every area; each row has a weakness of its own, or its attempt succeeds on plain Celery (docs/reports/checks.md)."""
    assert len(TABLE) >= 90 and {row.area for row in TABLE.values()} == set(AREAS)
    assert all(row.is_for(broker, row.kind) for row in TABLE.values() for broker in row.brokers)


@pytest.mark.parametrize("area", AREAS)
def test_it_is_not_possible(subject: tuple[Subject, str], area: str) -> None:
    tried = [row for row in rows(subject) if row.area == area]
    if not tried:
        pytest.skip("another stack has the rows of this area")
    assert not {row.what: found for row in tried if (found := row.attempt(subject[0]))}


@pytest.mark.parametrize("area", AREAS)
def test_the_attempt_succeeds_where_a_weakness_is_planted(subject: tuple[Subject, str], area: str) -> None:
    tried = [row for row in rows(subject) if row.area == area and row.plant]
    if not tried:
        pytest.skip("another stack has the rows of this area, or plain Celery has the weakness")
    green = []
    for row in tried:
        with ExitStack() as planted:
            assert row.plant
            if not row.attempt(planted.enter_context(row.plant.made(subject[0]))):
                green.append(row.what)
    assert not green


def test_the_report_has_every_row() -> None:
    """And none that was never seen to succeed."""
    lines = (Path(__file__).parents[2] / "docs/reports/checks.md").read_text().splitlines()
    cells = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in lines if line.startswith("| ")}
    assert {row.what for row in TABLE.values()} <= cells.keys()
