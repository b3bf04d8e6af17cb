"""THE table of what must not be possible: on a stack of the kit, and on plain Celery beside it.

A row is a `Check` (contract.py): an area, what must not be possible, an attempt on a running stack, and a weakness that is
planted so that the attempt is seen to succeed. To add some: a module with ROWS, and its name here. `test_table.py` tries all of
them on the kit, with and without the weakness; `make test-checks` on plain Celery too, and writes docs/reports/checks.md.
"""

from tests.security.checks import clients, containers, messages, pages, servers, trust
from tests.security.checks.contract import AREAS, Check

#: Each row, by its id, in the order of the areas.
TABLE: dict[str, Check] = {
    row.id: row
    for row in sorted(
        (*messages.ROWS, *clients.ROWS, *servers.ROWS, *containers.ROWS, *pages.ROWS, *trust.ROWS),
        key=lambda row: AREAS.index(row.area),
    )
}
