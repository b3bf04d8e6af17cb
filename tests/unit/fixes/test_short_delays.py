"""Delays of less than a second become one second, whichever way they are given; others stay as they are."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from celery_kit.fixes.short_delays import rounded_up

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("countdown", "eta", "given_back"),
    [
        (0.5, None, (1, None)),
        (None, NOW + timedelta(seconds=0.2), (1, None)),
        (None, (NOW + timedelta(seconds=0.2)).isoformat(), (1, None)),
        (None, None, (None, None)),
        (0, None, (0, None)),
        (-3, None, (-3, None)),
        (1, None, (1, None)),
        (7.5, None, (7.5, None)),
        (None, NOW - timedelta(seconds=5), (None, NOW - timedelta(seconds=5))),
    ],
)
def test_only_a_delay_below_a_second_is_changed(countdown: Any, eta: Any, given_back: Any) -> None:
    assert rounded_up(countdown, eta, NOW) == given_back
