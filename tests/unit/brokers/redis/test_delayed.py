"""Which messages wait on a Redis server until they are due, and when that is. celery_kit/brokers/redis/delayed.py"""

from typing import Any

import pytest

from celery_kit.brokers.redis.delayed import due


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        ("2026-11-30T02:00:00.123456+00:00", 1_796_004_000_124),  # never before its ETA
        ("2026-11-30T02:00:00Z", 1_796_004_000_000),
        ("2026-11-30T07:45:00+05:45", 1_796_004_000_000),
    ],
)
def test_a_message_is_due_at_its_eta(eta: str, expected: int) -> None:
    assert due({"headers": {"eta": eta}}) == expected


@pytest.mark.parametrize(
    "headers", [None, [], {}, {"eta": None}, *({"eta": eta} for eta in (5, "", "soon", "2026-11-30T02:00:00"))]
)
def test_a_message_without_a_time_that_is_certain_is_left_to_celery(headers: Any) -> None:
    """An ETA without a zone is in the zone of the worker that receives it."""
    assert due({"headers": headers}) is None
