"""Celery's settings, as the rooms compose them."""

import os
from typing import Any
from unittest.mock import patch

import pytest
from celery.app.defaults import NAMESPACES, flatten

from celery_kit.profile import Profile
from tests.harness.combinations import COMBINATIONS, Combination, parameters
from tests.harness.kit import kit


def settings(combination: Combination | None = None, **environ: str) -> dict[str, Any]:
    chosen = combination and {
        "BROKER": combination.broker.name,
        "BACKEND": combination.backend.name,
        "POOL": combination.pool.name,
    }
    environ = {**(chosen or {"BROKER": "redis"}), **environ}
    with patch.dict(os.environ, environ):
        return {**dict(kit(environ).conf.items()), "_profile": Profile.from_environ()}


@pytest.mark.parametrize("combination", parameters(COMBINATIONS))
def test_the_profile_is_safe_on_every_combination(combination: Combination) -> None:
    """Celery's setting names only, late acknowledgement, bounded waits, one time limit that the others follow."""
    found = settings(combination)
    known = {str(option[0]) for option in flatten(NAMESPACES)} | {"redis_backend_health_check_interval"}  # read, not listed
    ours = combination.broker.settings(found["_profile"]) | combination.backend.settings(found["_profile"])
    assert ours.keys() <= known, "a setting that Celery does not have"
    assert found["task_acks_late"] and found["task_reject_on_worker_lost"]
    assert found["broker_connection_max_retries"] is None
    timeout = found["broker_transport_options"].get("visibility_timeout")
    assert timeout is None or timeout > found["task_time_limit"]


def test_every_module_dropped_into_the_tasks_folder_registers_itself() -> None:
    assert set(settings()["imports"]) == {f"app.tasks.{name}" for name in ("mail", "media", "reports", "workflows")}


def test_the_time_limit_moves_what_depends_on_it() -> None:
    found = settings(TASK_TIME_LIMIT="7200")
    assert found["task_time_limit"] == 7_200
    assert found["broker_transport_options"]["visibility_timeout"] > 7_200


def test_a_second_report_can_be_switched_on() -> None:
    assert [entry["task"] for entry in settings()["beat_schedule"].values()] == ["reports.daily_statistics"]
    tried = settings(REPORT_EVERY="5")["beat_schedule"]
    assert sorted(str(entry["schedule"]) for entry in tried.values())[0] == "5.0"


def test_pickle_is_warned_of_once_and_nothing_else_is(caplog: pytest.LogCaptureFixture) -> None:
    settings(TASK_SERIALIZER="yaml", ACCEPT_CONTENT="json,yaml,msgpack")
    assert not caplog.messages
    settings(ACCEPT_CONTENT="json,pickle")
    (line,) = caplog.messages
    assert "pickle is on" in line and "\n" not in line


def test_compression_is_handed_to_celery() -> None:
    found = settings(TASK_COMPRESSION="zstd", RESULT_COMPRESSION="brotli")
    assert (found["task_compression"], found["result_compression"]) == ("zstd", "brotli")
