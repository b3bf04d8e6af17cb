"""The rig itself: a task of each side succeeds."""

from tests.compat.rig import SIDES, Side, outcomes


def test_a_task_gives_the_same_on_every_side(sides: dict[str, Side]) -> None:
    assert outcomes(sides, "basics:added", 2, 3) == dict.fromkeys(SIDES, 5)
