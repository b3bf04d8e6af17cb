"""A group follows its load by what `make k8s AUTOSCALE=1` renders: ten times the tasks, and few again.

The questions of the rendered ScaledObject are asked of the stack's own Prometheus, which scrapes the real exporter. There is no
cluster: containers of the stack stand in for pods, and tests/autoscale/autoscaler.py for KEDA and Kubernetes' autoscaler. What
idle-first would note on a pod is asked of the same exporter.
"""

import json
import math
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from celery_kit.operate.groups import Group
from celery_kit.operate.kubernetes.check import rendered
from celery_kit.operate.kubernetes.idle import idle
from celery_kit.operate.stacks import scaling
from celery_kit.operate.stacks.docker import Facts
from celery_kit.operate.stacks.scaling import Containers
from tests.autoscale.autoscaler import SYNC, Autoscaler
from tests.deploy.conftest import Checkout, checkout  # noqa: F401
from tests.deploy.test_balance import AFTER, BEFORE, MOST, PAIRS, TABLE, TARGET, Loaded, grouped  # noqa: F401
from tests.deploy.test_monitor import ask
from tests.harness.waiting import until

LOAD = Group("load")
METRICS = "from urllib.request import urlopen; print(urlopen('http://127.0.0.1:9808/metrics').read().decode())"


class Pods:
    """The workers of the group, which stand in for pods, and what decides about them."""

    def __init__(self, loaded: Loaded, scaled: Facts) -> None:
        self.loaded, self.project = loaded, loaded.checkout.environ["COMPOSE_PROJECT_NAME"]
        self.containers = Containers(self.project, self.inspected)
        self.autoscaler, self.next, self.busy_ended = Autoscaler(scaled, self.answer), 0.0, 0

    def answer(self, query: str) -> float | None:
        found = [float(one["value"][1]) for one in ask(self.loaded.checkout, "query", query=query)["result"]]
        return found[0] if found and math.isfinite(found[0]) else None

    def inspected(self) -> list[Facts]:
        words = ["docker", "ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={self.project}"]
        found = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
        return list(json.loads(subprocess.run(["docker", "inspect", *found], check=True, capture_output=True).stdout))

    def follows(self) -> int:
        """How many there are, after one more decision, if it is time for one."""
        number, now = self.containers.count(LOAD), time.monotonic()
        if now < self.next:
            return number
        self.next = now + SYNC
        wanted = self.autoscaler.decide(number, now)
        if wanted > number:
            self.containers.more(LOAD, wanted - number)
        for _ in range(number - wanted):
            self.end()
        return wanted

    def end(self) -> None:
        """The one that costs least: an idle one first, as idle-first has noted."""
        exporter = f"{self.project}-exporter-1"
        words = ["docker", "exec", exporter, "python", "-c", METRICS]
        free = idle(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        running = [one for one in self.inspected() if one["State"]["Running"] and LOAD.service in one["Name"]]
        least = min(running, key=lambda one: one["Config"]["Hostname"] not in free)
        self.busy_ended += least["Config"]["Hostname"] not in free
        self.containers.end(f"load@{least['Config']['Hostname']}")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("broker", "pool"), PAIRS)
def test_a_load_step_is_followed_up_and_down(
    grouped: Checkout,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    broker: str,
    pool: str,
) -> None:
    places, seconds = {"prefork": (2, 0.5), "gevent": (4, 1.0)}[pool]
    table = TABLE.format(pool=pool, places=places, most=MOST, target=TARGET)
    (grouped.folder / "app/workers.toml").write_text(table)
    assert grouped.make("k8s", f"BROKER={broker}", "MONITOR=1", "AUTOSCALE=1", "OUT=out").returncode == 0
    objects = rendered(Path(grouped.folder) / "out")
    (scaled,) = (one for one in objects if (one["kind"], one["metadata"]["name"]) == ("ScaledObject", "worker-load"))
    assert grouped.make("up", f"BROKER={broker}", "MONITOR=1").returncode == 0
    monkeypatch.setattr(scaling, "ROOT", grouped.folder)
    loaded = Loaded(grouped, broker)
    pods = Pods(loaded, scaled)

    few = loaded.sends(BEFORE, seconds)
    until("tasks do not wait", lambda: pods.follows() == 1 and loaded.keeps_up(BEFORE), 60, every=1)
    loaded.stops(few)

    stepped, many = time.time(), loaded.sends(AFTER, seconds)
    until("workers are started", lambda: pods.follows() > 1, 60, every=0.5)
    until("tasks wait less than the target again", lambda: pods.follows() and loaded.keeps_up(AFTER), 60, every=1)
    most = loaded.workers()
    print(f"{broker}, {pool}: p95 under {TARGET:g} s again {time.time() - stepped:.0f} s after the step, {most} workers")
    loaded.stops(many)

    fell, few = time.time(), loaded.sends(BEFORE, seconds)
    until("one worker is left", lambda: pods.follows() == 1 and loaded.workers() == 1, 700, every=1)
    print(f"{broker}, {pool}: one worker again {time.time() - fell:.0f} s after the load fell")
    loaded.stops(few)
    assert not pods.busy_ended, "an idle worker was ended each time"
    until("all have run", lambda: loaded.sent <= {one.id for one in loaded.notes() if one.event == "end"}, 30, every=0.5)
    begun, ended = (Counter((one.id, one.worker) for one in loaded.notes() if one.event == event) for event in ("begin", "end"))
    assert begun == ended, "none was ended by the end of its worker"
    assert {*begun.values()} == {1} and len(begun) == len(loaded.sent), "none ran twice, none is lost"
    print(f"{broker}, {pool}: {len(begun)} tasks, each once")
