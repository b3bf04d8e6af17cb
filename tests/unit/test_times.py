"""One number for all times: what follows from TASK_TIME_LIMIT, here and in the compose files, and what contradicts it."""

import os
from unittest.mock import patch

import pytest

from app import times
from app.profile import stop_grace
from tests.unit.test_config import settings
from tests.unit.test_profile import profile

LIMITS = (1, 300, 7_200, 86_400)


@pytest.mark.parametrize("limit", LIMITS)
def test_every_other_time_is_longer_than_the_time_limit(limit: int) -> None:
    for derived in (times.STOP_GRACE_PERIOD, times.VISIBILITY_TIMEOUT, times.CONSUMER_TIMEOUT):
        assert times.seconds(derived, limit, {}) > limit


def test_a_time_that_fits_is_taken() -> None:
    assert profile(TASK_TIME_LIMIT="2", VISIBILITY_TIMEOUT="4").visibility_timeout == 4
    assert profile(VISIBILITY_TIMEOUT="2h").visibility_timeout == 7_200
    with patch.dict(os.environ, {"STOP_GRACE_PERIOD": "10m30s"}):
        assert stop_grace() == 630


def test_at_most_once_says_what_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    assert settings()["task_acks_late"] and not caplog.messages
    found = settings(DELIVERY="at-most-once")
    assert (found["task_acks_late"], found["task_reject_on_worker_lost"]) == (False, False)
    (line,) = caplog.messages
    assert "DELIVERY=at-most-once: a task that has begun never runs again; if its worker dies, it is lost" in line
