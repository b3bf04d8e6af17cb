"""Parts of the fast engine: left out where their versions are not installed, or where ENGINE_WITHOUT names them."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from packaging.version import Version

from celery_kit.base import versions
from celery_kit.base.target import ROOT
from celery_kit.engine import parts


@pytest.fixture(autouse=True)
def _asked_afresh() -> Iterator[None]:
    parts.on.cache_clear()
    yield
    parts.on.cache_clear()


@pytest.mark.parametrize("name", parts.PARTS)
def test_every_part_is_used_with_the_versions_of_the_locks(name: str) -> None:
    assert parts.on(name) and not parts.left_out()


def test_other_versions_leave_a_part_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed", lambda _: Version("5.8.1"))
    assert not parts.on("trace") and "trace" in parts.left_out() and "wake_up" not in parts.left_out()


def test_a_broker_whose_transport_is_left_out_has_the_plain_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (parts.engine("fast", "fetch"), parts.engine("plain", "fetch")) == ("fast", "plain")
    parts.on.cache_clear()
    monkeypatch.setenv("ENGINE_WITHOUT", "trace, fetch")
    assert parts.engine("fast", "fetch") == "plain"


def test_a_part_that_is_not_known_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENGINE_WITHOUT", "lane")
    with pytest.raises(SystemExit):
        parts.on("trace")
    assert "ENGINE_WITHOUT=lane is not known; allowed: commit, fast_path" in capsys.readouterr().err


#: What stands where a part does, in a process of its own: much of it is chosen once.
LOOK = """
import json
from app import app
from celery_kit.engine import quick_json, trace
from celery_kit.produce import bulk, delay, publishing
backend, task = type(app.backend), app.tasks["celery.accumulate"]
delay.Delays._publish = lambda *_: "published"
print(json.dumps({
    "commit": backend.__module__ != "celery.backends.redis",
    "result_text": bool(getattr(app.backend, "_short", False)),
    "trace": trace.quick(task, app, "here").__module__ == "celery_kit.engine.trace",
    "quick_json": quick_json._QUICK,
    "brief": publishing.brief((1, "a")) is not None,
    "transport": app.conf.broker_transport_options["engine"] == "fast",
    "take_ahead": app.conf.broker_transport_options["take_ahead"],
}))
"""


def look(broker: str, without: str) -> dict[str, Any]:
    environ = {**os.environ, "BROKER": broker, "BACKEND": "redis", "ENGINE_WITHOUT": without, "CELERY_BROKER_URL": ""}
    run = subprocess.run([sys.executable, "-c", LOOK], cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    return dict(json.loads(run.stdout))


def test_what_is_left_out_is_not_used() -> None:
    """Each part by itself is left out, and nothing else."""
    assert set(look("redis", "").values()) == {True}
    names = {"commit": {"commit", "result_text"}, "fetch": {"transport"}}
    for name in ("commit", "result_text", "trace", "quick_json", "brief", "take_ahead", "fetch"):
        assert {what for what, there in look("redis", name).items() if not there} == names.get(name, {name})
    assert {what for what, there in look("rabbitmq", "read_ahead").items() if not there} == {"transport"}
