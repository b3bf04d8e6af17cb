"""Two apps in one process, a plain one and the kit's, and workers of both on one server."""

from typing import Any

import pytest

from tests.compat.conftest import outcomes
from tests.compat.rig import CELERY, KIT, SIDES, Side

EACH = [n + 1 for n in range(11)]


def of_redis(sides: dict[str, Side]) -> None:
    if sides[CELERY].place.name != "redis":
        pytest.skip("on RabbitMQ the two declare a queue each in its own way: 406, docs/migration.md")


@pytest.mark.parametrize("side", SIDES)
def test_a_plain_app_beside_the_kits_sends_what_plain_workers_see(sides: dict[str, Side], side: str) -> None:
    """The kit's classes are the kit's app's: another one of the process is plain Celery's, on its own workers' queues."""
    assert sides[side].client("apps:plain_beside", sides[CELERY].queue) == EACH


@pytest.mark.parametrize("side", SIDES)
def test_each_side_sees_each_priority_that_the_other_writes(sides: dict[str, Side], side: str) -> None:
    """Nothing is written where a worker of the other kind does not look."""
    of_redis(sides)
    others = KIT if side == CELERY else (CELERY,)
    assert {other: sides[side].client("apps:each_to", sides[other].queue) for other in others} == dict.fromkeys(others, EACH)


def test_a_shared_task_is_the_apps_from_any_thread(sides: dict[str, Side]) -> None:
    """Plain Celery has that where the user makes its app the default one, as the plain side does."""
    found: dict[str, Any] = outcomes(sides, "apps:shared_from_a_thread")
    assert found == {side: ["sent"] for side in SIDES}
