"""The compose files derive every time from TASK_TIME_LIMIT by themselves, as the app does."""

import json
import os
import re
import subprocess

import pytest

from celery_kit.base import times
from celery_kit.base.choices import stop_grace
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS


@pytest.mark.parametrize("limit", (1, 300, 7_200, 86_400))
@pytest.mark.parametrize("name", [name for name, broker in BROKERS.items() if broker.compose_file])
def test_the_compose_files_derive_the_same(name: str, limit: int) -> None:
    """Without make, too: the worker's stop grace, and what RabbitMQ is told."""
    environ = {**os.environ, "TASK_TIME_LIMIT": str(limit)}
    shown = subprocess.run(
        ["docker", "compose", "-f", str(BROKERS[name].compose_file), "config", "--format", "json"],
        cwd=ROOT, env=environ, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    services = json.loads(shown)["services"]
    grace = services["worker"]["stop_grace_period"]
    found = sum(int(n) * int(times.UNITS[unit]) for n, unit in re.findall(r"(\d+)([hms])", grace))
    assert found == stop_grace({"TASK_TIME_LIMIT": str(limit)})
    for host in BROKERS[name].hosts:
        if told := services[host].get("environment", {}).get("CONSUMER_TIMEOUT"):
            assert int(told) == 1_000 * times.seconds(times.CONSUMER_TIMEOUT, limit, {})
