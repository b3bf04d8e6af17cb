"""A canvas gives the same result on every side, whatever its parts."""

import os
from collections.abc import Callable

import pytest

from tests.compat.rig import KIT, Place, Side, outcomes, worker
from tests.harness.workers import PLAIN_CELERY

#: Run one of so many canvases. Prefork has a separate path for results, through its children.
EVERY = {"prefork": 11 if os.environ.get("QUICK") else 1}
ELSEWHERE = 29


def test_a_canvas_in_a_canvas_gives_what_celery_gives(sides: dict[str, Side], request: pytest.FixtureRequest) -> None:
    """Each result that a task stores at its end - its own, a group's, another task's - is stored under the right id."""
    _, pool = request.node.callspec.params["sides"]
    given = outcomes(sides, "canvas:gives", EVERY.get(pool, ELSEWHERE))
    for engine in KIT:
        assert given[engine] == given[PLAIN_CELERY]


def test_one_child_gives_what_two_do(places: Callable[[str], Place]) -> None:
    """Everything that a child process passes to its parent has the id of its task, however many children there are."""
    given = []
    for children in ("1", "2"):
        with worker("fast", places("redis"), "prefork", "-c", children) as side:
            given.append(side.client("canvas:gives", max(EVERY["prefork"], 5)))
    assert given[0] == given[1]
