"""One number for all times: what follows from TASK_TIME_LIMIT, here and in the compose files, and what contradicts it."""

import os
import subprocess
import sys
from unittest.mock import patch

import pytest
from celery import Celery

from celery_kit.base import times
from celery_kit.base.choices import stop_grace
from celery_kit.base.target import ROOT
from celery_kit.operate.stacks import compose
from celery_kit.worker.grace import grace_of
from tests.unit.app.test_config import settings
from tests.unit.test_profile import profile

LIMITS = (1, 300, 7_200, 86_400)


@pytest.mark.parametrize("limit", LIMITS)
def test_every_other_time_is_longer_than_the_time_limit(limit: int) -> None:
    for derived in (times.STOP_GRACE_PERIOD, times.VISIBILITY_TIMEOUT, times.CONSUMER_TIMEOUT):
        assert times.seconds(derived, limit, {}) > limit


def test_without_a_time_limit_nothing_bounds_a_task() -> None:
    assert profile(TASK_TIME_LIMIT="0").task_time_limit == 0
    assert times.seconds(times.CONSUMER_TIMEOUT, 0, {}) == times.MOST
    with patch.dict(os.environ, {"TASK_TIME_LIMIT": "0"}):
        assert grace_of(Celery(set_as_current=False).conf) == 30


def test_a_time_that_fits_is_taken() -> None:
    assert profile(WORKER_LEASE="3", VISIBILITY_TIMEOUT="4").visibility_timeout == 4
    assert profile(VISIBILITY_TIMEOUT="2h").visibility_timeout == 7_200
    with patch.dict(os.environ, {"STOP_GRACE_PERIOD": "10m30s"}):
        assert stop_grace() == 630


#: A process of its own, for whoever runs the tests may have an alarm set.
ALARMS = """
import os, signal
from celery_kit.worker import grace as shutdown
from celery_kit.base.choices import stop_grace
from celery_kit.base.target import ROOT
for os.environ["STOP_GRACE_PERIOD"] in ("2s", "5s", "9s999ms", "10s", "11s", "1h", "8760h"):
    shutdown._limit(shutdown.grace_of(None))
    left = signal.setitimer(signal.ITIMER_REAL, 0)[0]
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert 0 < left < stop_grace(), (os.environ["STOP_GRACE_PERIOD"], left)
"""


def test_whatever_grace_is_allowed_leaves_a_time_to_hand_back_in() -> None:
    """Each time that is not refused can be kept to: the alarm is set, and rings before the grace ends."""
    ran = subprocess.run(
        [sys.executable, "-c", ALARMS], cwd=ROOT, env={**os.environ, "TASK_TIME_LIMIT": "1"}, capture_output=True, text=True
    )
    assert not ran.returncode, ran.stderr


def test_at_most_once_says_what_it_gives_up(caplog: pytest.LogCaptureFixture) -> None:
    assert settings()["task_acks_late"] and not caplog.messages
    found = settings(DELIVERY="at-most-once")
    assert (found["task_acks_late"], found["task_reject_on_worker_lost"]) == (False, False)
    (line,) = caplog.messages
    assert "DELIVERY=at-most-once: a task that has started never runs again; if its worker dies, it is lost" in line


@pytest.mark.parametrize(
    ("given", "found"),
    [({"TASK_TIME_LIMIT": "0"}, "31536000000"), ({"TASK_TIME_LIMIT": "0", "CONSUMER_TIMEOUT": "9"}, None), ({}, None)],
)
def test_make_gives_the_broker_a_time_that_compose_cannot_derive(given: dict[str, str], found: str | None) -> None:
    """In milliseconds, a year."""
    with patch.object(compose, "settings", lambda: given):
        assert compose._consumer_timeout().get("CONSUMER_TIMEOUT") == found
