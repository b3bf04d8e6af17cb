"""Tasks store the same states as with Celery, and the states are visible at the same places."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.compat.conftest import PAIRS, covering
from tests.compat.rig import KIT, Place, Side, outcomes, worker
from tests.harness.workers import PLAIN_CELERY

#: Functions of cases/stored.py.
WHAT = {
    "what a task stores for other tasks is theirs": "stored_for_others",
    "what a task has said of itself stays, however it ends": "said",
    "what a task has said of itself is seen at once": "seen_while_it_runs",
    "whoever looks within the worker at a task's end sees it": "views",
}


def _id(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize(("sides", "what"), covering(PAIRS, WHAT), indirect=["sides"], scope="session", ids=_id)
def test_a_state_is_stored_as_celery_stores_it(sides: dict[str, Side], what: str) -> None:
    """The kit delays only final states, and code in the worker's process sees these as well."""
    given = outcomes(sides, f"stored:{WHAT[what]}")
    for engine in KIT:
        assert given[engine] == given[PLAIN_CELERY]


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_sees_the_end_of_the_one_before_it(places: Callable[[str], Place], pool: str) -> None:
    """A task reads the state that its worker stored for the task before it."""
    with worker("fast", places("redis"), pool, "-c", "1") as side:
        assert set(map(tuple, side.client("stored:siblings").values())) == {("SUCCESS",)}
