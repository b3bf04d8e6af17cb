"""Spans of the producer and of the worker are one trace, on every pool, seen through in-memory exporters."""

import json
import os
import subprocess
import sys

import pytest

from celery_kit.base.target import ROOT
from celery_kit.pools.table import POOLS
from tests.operator.conftest import Machine

PRODUCER = """
import json
from app import app
from tests.operator import traces
for task in ("send_on", "fail"):
    app.signature(f"tests.operator.probes.{task}").apply_async().get(timeout=30, propagate=False)
from tests.harness.waiting import until
ended = "run/tests.operator.probes.say"
def worker():
    found = app.send_task("tests.operator.traces.spans").get(timeout=30)
    return found if ended in [span["name"] for span in found] else None
print(json.dumps([traces.told(), until("all tasks ran", worker, 30)]))
"""


@pytest.mark.parametrize("pool", POOLS)
def test_the_span_of_a_run_belongs_to_the_span_that_sent_it(machine: Machine, pool: str) -> None:
    """Tasks that a task sends belong to the span of its run."""
    machine.worker(pool, "-I", "tests.operator.traces,tests.operator.probes", "-c", "1")
    environ = {**os.environ, **machine.environ}
    done = subprocess.run([sys.executable, "-c", PRODUCER], cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sent, ran = json.loads(done.stdout)
    probes = "tests.operator.probes"
    first = next(span for span in sent if span["name"] == f"apply_async/{probes}.send_on")
    by_name = {span["name"]: span for span in ran}
    run, sending, follower = (
        by_name[name] for name in (f"run/{probes}.send_on", f"apply_async/{probes}.say", f"run/{probes}.say")
    )
    assert [run["parent"], sending["parent"], follower["parent"]] == [first["id"], run["id"], sending["id"]]
    assert {span["trace"] for span in (run, sending, follower)} == {first["trace"]}
    assert by_name[f"run/{probes}.fail"]["trace"] != first["trace"]


def test_an_exporter_that_is_not_known_is_refused_in_one_line(machine: Machine) -> None:
    process = machine.start("app.worker", OTEL_TRACES_EXPORTER="carrier-pigeon")
    assert process.process.wait(60) == 2
    assert process.said.splitlines() == [
        "celery-kit: OTEL_TRACES_EXPORTER=carrier-pigeon is not known; allowed: none, otlp, console"
    ]
