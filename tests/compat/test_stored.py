"""What a task stores, and who sees it, is what Celery stores, and whom it lets see."""

from collections.abc import Callable

import pytest

from tests.compat.rig import KIT, Place, Side, outcomes, worker
from tests.harness.workers import PLAIN_CELERY


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("stored_for_others", id="what a task stores for other tasks is theirs"),
        pytest.param("said", id="what a task has said of itself stays, however it ends"),
        pytest.param("seen_while_it_runs", id="what a task has said of itself is seen at once"),
        pytest.param("views", id="whoever looks within the worker at a task's end sees it"),
    ],
)
def test_a_state_is_stored_as_celery_stores_it(sides: dict[str, Side], what: str) -> None:
    """A state that is not the end itself is nobody's to hold back; the end is there for whoever looks in its process."""
    given = outcomes(sides, f"stored:{what}")
    for engine in KIT:
        assert given[engine] == given[PLAIN_CELERY]


@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_a_task_sees_the_end_of_the_one_before_it(places: Callable[[str], Place], pool: str) -> None:
    """What a worker has said by itself is what its next task reads."""
    with worker("fast", places("redis"), pool, "-c", "1") as side:
        assert set(map(tuple, side.client("stored:siblings").values())) == {("SUCCESS",)}
