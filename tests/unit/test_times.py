"""One number for all times: what follows from TASK_TIME_LIMIT, here and in the compose files, and what contradicts it."""

import json
import os
import re
import subprocess
from unittest.mock import patch

import pytest

from app import times
from app.brokers import BROKERS
from app.profile import stop_grace
from app.stack import ROOT
from tests.unit.test_config import settings
from tests.unit.test_profile import profile

LIMITS = (1, 300, 7_200, 86_400)


@pytest.mark.parametrize("limit", LIMITS)
def test_every_other_time_is_longer_than_the_time_limit(limit: int) -> None:
    for derived in (times.STOP_GRACE_PERIOD, times.VISIBILITY_TIMEOUT, times.CONSUMER_TIMEOUT):
        assert times.seconds(derived, limit, {}) > limit


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("file", [broker.compose_file for broker in BROKERS.values() if broker.compose_file])
def test_the_compose_files_derive_the_same(file: str, limit: int) -> None:
    """Without make, too: the worker's stop grace, and what RabbitMQ is told."""
    environ = {**os.environ, "TASK_TIME_LIMIT": str(limit)}
    shown = subprocess.run(
        ["docker", "compose", "-f", file, "config", "--format", "json"],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    services = json.loads(shown)["services"]
    grace = services["worker"]["stop_grace_period"]
    found = sum(int(n) * int(times.UNITS[unit]) for n, unit in re.findall(r"(\d+)([hms])", grace))
    assert found == stop_grace({"TASK_TIME_LIMIT": str(limit)})
    if told := services["broker"].get("environment", {}).get("CONSUMER_TIMEOUT"):
        assert int(told) == 1_000 * times.seconds(times.CONSUMER_TIMEOUT, limit, {})


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"STOP_GRACE_PERIOD": "100s"}, "STOP_GRACE_PERIOD=100s contradicts TASK_TIME_LIMIT=300: a stop would kill tasks that"),
        ({"STOP_GRACE_PERIOD": "100s"}, "leave it out, or choose 330s"),
        ({"STOP_GRACE_PERIOD": "soon"}, "STOP_GRACE_PERIOD=soon is not allowed"),
        ({"VISIBILITY_TIMEOUT": "300"}, "VISIBILITY_TIMEOUT=300 contradicts TASK_TIME_LIMIT=300"),
        ({"TASK_TIME_LIMIT": "7200", "VISIBILITY_TIMEOUT": "3600"}, "leave it out, or choose 28800s"),
        ({"CONSUMER_TIMEOUT": "1000"}, "CONSUMER_TIMEOUT=1000 contradicts TASK_TIME_LIMIT=300"),
        ({"MAX_DELIVERIES": "21"}, "MAX_DELIVERIES=21 is not allowed; a whole number from 1 to 20"),
        ({"DELIVERY": "exactly-once"}, "DELIVERY=exactly-once is not known; allowed: at-least-once, at-most-once"),
    ],
)
def test_what_contradicts_the_time_limit_is_refused_in_one_line(
    environ: dict[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        profile(**environ)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("celery-kit: ") and said in line


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
