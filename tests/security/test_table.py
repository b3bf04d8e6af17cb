"""Each row of the table of what must not be possible: it is not, on a stack of the kit; and the attempt succeeds where it is.

The table, and how to add a row: tests/security/checks/. The same on plain Celery: `make test-checks`.
"""

from collections.abc import Iterator
from sys import intern

import pytest

from testbed.servers import SERVERS
from tests.harness.combinations import one_of
from tests.harness.waiting import settled
from tests.security.checks import TABLE
from tests.security.checks.contract import AREAS, REPORT, Check, Subject
from tests.security.checks.stacks import of_kit


def has_rows(area: str, broker: str, kind: str) -> bool:
    return any(row.area == area and row.is_for(broker, kind) for row in TABLE.values())


def brokers(area: str, kind: str) -> list[str]:
    """Those that have rows of an area. With QUICK=1 one of them, each in turn."""
    return one_of([broker for broker in SERVERS if has_rows(area, broker, kind)], AREAS.index(area))


#: Each stack with the areas that have rows for it. Areas share a stack only where its name is the same object, to pytest.
STACKS = [
    pytest.param(intern(f"{broker}-{kind}"), area, id=f"{broker}-{kind}-{area.replace(' ', '-')}")
    for kind in ("stack", "secure")
    for broker in SERVERS
    for area in AREAS
    if broker in brokers(area, kind)
]


@pytest.fixture(scope="module")
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Subject, str]]:
    broker, _, kind = request.param.partition("-")
    with of_kit(broker, tmp_path_factory.mktemp(request.param), kind) as one:
        yield one, kind


def rows(subject: tuple[Subject, str], area: str) -> list[Check]:
    one, kind = subject
    return [row for row in TABLE.values() if row.area == area and row.is_for(one.broker, kind)]


def test_the_table_has_ninety_rows_and_every_area() -> None:
    assert len(TABLE) >= 90 and {row.area for row in TABLE.values()} == set(AREAS)


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(("subject", "area"), STACKS, indirect=["subject"], scope="module")  # else each has a stack of its own
def test_it_is_not_possible_unless_a_weakness_is_planted(subject: tuple[Subject, str], area: str) -> None:
    """Rows without a planted weakness are those that plain Celery has: see the report."""
    possible = {row.what: found for row in rows(subject, area) if (found := row.attempt(subject[0]))}
    assert not possible
    green = []
    for row in rows(subject, area):
        if row.plant:
            with row.plant.made(subject[0]) as weak:
                if not settled(lambda: row.attempt(weak), bool, 20, every=1):  # noqa: B023  # what is planted may have to start
                    green.append(row.what)
    assert not green, "the attempt does not find a planted weakness"


def test_the_report_has_every_row_and_each_was_seen_to_succeed_somewhere() -> None:
    """With a weakness planted, or on plain Celery."""
    lines = [line.strip("| ").split(" | ") for line in REPORT.read_text().splitlines() if line.startswith("| ")]
    seen = {cells[0]: cells[1:] for cells in lines if len(cells) == 4}
    assert {row.what for row in TABLE.values()} <= seen.keys()
    assert not [row.what for row in TABLE.values() if seen[row.what][0] != "no"]
    assert not [
        row.what for row in TABLE.values() if "possible" not in seen[row.what][1] and ": found" not in seen[row.what][2]
    ]
