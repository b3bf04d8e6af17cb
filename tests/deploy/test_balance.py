"""`make balance` under a load that rises to ten times and falls again, on real stacks.

QUICK=1: on one combination, with a short cooldown; otherwise with the default one. Tasks note their begin and end in the
stack's volume, independently of Celery and the broker.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from celery_kit.operate.groups import Group
from celery_kit.operate.stacks import scaling
from celery_kit.operate.stacks.docker import Facts
from celery_kit.operate.stacks.images import image
from celery_kit.operate.stacks.scaling import Containers, NotScaledError
from tests.deploy.conftest import Checkout
from tests.deploy.test_embedded import NO_DOCKER
from tests.harness.waiting import until

PAIRS = [("redis", "prefork"), ("rabbitmq", "gevent")]
#: Seconds that a task may wait, tasks/s before and after the step, and the most workers. One does 4 tasks/s.
TARGET, BEFORE, AFTER, MOST = 5.0, 1, 10, 5
#: What is typed: nothing but the command, unless it has to be quick.
WORDS = ["EVERY=2", "COOLDOWN=5"] if os.environ.get("QUICK") else []
#: Seconds of which the waits are looked at.
SPAN = 5.0
TABLE = """
[groups.load]
queues = ["load"]
pool = "{pool}"
concurrency = {places}
scale = {{min = 1, max = {most}}}
target_wait = {target}
time_limit = 60
"""
TASK = """
import os
import time
from celery import shared_task


def note(*words):
    with open("/data/notes", "a") as file:
        file.write(" ".join(map(str, words)) + "\\n")


@shared_task(bind=True)
def work(self, sent, seconds):
    note("begin", self.request.id, self.request.hostname, time.time(), time.time() - sent)
    time.sleep(seconds)  # the work of this task: as long as the test asks for
    note("end", self.request.id, self.request.hostname, time.time(), 0)
"""
ROUTE = '\ntask_routes = {"load.work": {"queue": "load"}}\n'
#: Sends tasks at a rate until its standard input ends, and prints the ids of those that were accepted.
PRODUCER = """
import sys, threading, time
from app import app
from app.tasks.load import work

rate, seconds, ended = float(sys.argv[1]), float(sys.argv[2]), threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
begun, number = time.monotonic(), 0
while not ended.is_set():
    print(work.delay(time.time(), seconds).id, flush=True)
    number += 1
    time.sleep(max(0.0, begun + number / rate - time.monotonic()))  # the rate: until the next task is due
"""


@dataclass(frozen=True)
class Note:
    """A line of a task: when it began, after how many seconds of waiting, or ended; seconds since the epoch."""

    event: str
    id: str
    worker: str
    at: float
    waited: float


class Loaded:
    """A stack with one group, and what is sent to it."""

    def __init__(self, checkout: Checkout, broker: str) -> None:
        self.checkout, self.broker, self.sent = checkout, broker, set[str]()
        shown = checkout.make("urls", f"BROKER={broker}", "ROLE=operator").stdout
        urls = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        self.environ = {**checkout.environ, **urls, "BROKER": broker}

    def sends(self, rate: float, seconds: float) -> subprocess.Popen[str]:
        """Send tasks of so many seconds at a rate, until :meth:`stops`."""
        words = [sys.executable, "-c", PRODUCER, str(rate), str(seconds)]
        pipe = subprocess.PIPE
        return subprocess.Popen(words, cwd=self.checkout.folder, env=self.environ, stdin=pipe, stdout=pipe, text=True)

    def stops(self, producer: subprocess.Popen[str]) -> None:
        ids = producer.communicate(timeout=30)[0].split()
        assert ids and not producer.returncode
        self.sent |= {*ids}

    def notes(self) -> list[Note]:
        beat = f"{self.checkout.environ['COMPOSE_PROJECT_NAME']}-beat-1"
        said = subprocess.run(["docker", "exec", beat, "cat", "/data/notes"], capture_output=True, text=True, check=False)
        lines = [line.split() for line in said.stdout.splitlines()]
        return [Note(event, task, worker, float(at), float(waited)) for event, task, worker, at, waited in lines]

    def keeps_up(self, rate: float) -> bool:
        """Whether tasks begin at the rate at which they arrive, and 95 % of them have waited less than TARGET seconds."""
        waits = sorted(one.waited for one in self.notes() if one.event == "begin" and one.at > time.time() - SPAN)
        return len(waits) >= 0.8 * rate * SPAN and waits[int(0.95 * len(waits))] < TARGET

    def workers(self) -> int:
        label = f"label=com.docker.compose.project={self.checkout.environ['COMPOSE_PROJECT_NAME']}"
        words = ["docker", "ps", "--quiet", "--filter", label, "--filter", "label=com.docker.compose.service=worker-load"]
        return len(subprocess.run(words, capture_output=True, text=True, check=True).stdout.split())


@pytest.fixture
def grouped(checkout: Checkout) -> Iterator[Checkout]:
    """A checkout with a task for the queue of a group; afterwards the stack and its data are gone, and so is the task."""
    table, tasks, config = (checkout.folder / name for name in ("app/workers.toml", "app/tasks/load.py", "app/config.py"))
    before = config.read_text()
    tasks.write_text(TASK)
    config.write_text(before + ROUTE)
    try:
        yield checkout
    finally:
        checkout.make("down", "VOLUMES=1")
        config.write_text(before)
        table.unlink(missing_ok=True)
        tasks.unlink(missing_ok=True)


def killed_as_it_stops_a_worker(folder: Path) -> Path:
    """A folder for PATH in which `docker stop` kills who calls it: `make balance` has taken the worker's queues by then."""
    (program := folder / "bin/docker").parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" != stop ] || exec kill -KILL $PPID\nexec {shutil.which("docker")} "$@"\n')
    program.chmod(0o755)
    return program.parent


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("broker", "pool"), PAIRS[:1] if os.environ.get("QUICK") else PAIRS)
def test_a_load_step_is_followed_up_and_down(grouped: Checkout, tmp_path: Path, broker: str, pool: str) -> None:
    """Ten times the tasks: they wait less than the target again, and later one worker is left. Each task ran once, to its end,
    on the worker that began it.
    """
    places, seconds = {"prefork": (2, 0.5), "gevent": (4, 1.0)}[pool]
    table = TABLE.format(pool=pool, places=places, most=MOST, target=TARGET)
    (grouped.folder / "app/workers.toml").write_text(table)
    assert grouped.make("up", f"BROKER={broker}").returncode == 0
    loaded, log = Loaded(grouped, broker), tmp_path / "balance.log"

    def starts_balance(**environ: str) -> subprocess.Popen[bytes]:
        with log.open("a") as file:
            return subprocess.Popen(
                ["make", "balance", *WORDS],
                cwd=grouped.folder, env={**grouped.environ, **environ}, stdout=file, stderr=file, process_group=0,
            )  # fmt: skip

    balance = starts_balance(PATH=f"{killed_as_it_stops_a_worker(tmp_path)}:{os.environ['PATH']}")
    try:
        few = loaded.sends(BEFORE, seconds)
        until("the group is balanced", lambda: f"load has 1 of 1 to {MOST} workers" in log.read_text(), 30)
        until("tasks do not wait", lambda: loaded.keeps_up(BEFORE), 30, every=1)
        assert loaded.workers() == 1
        loaded.stops(few)

        stepped, many = time.time(), loaded.sends(AFTER, seconds)
        until("workers are started", lambda: loaded.workers() > 1, 60, every=0.5)
        until("tasks wait less than the target again", lambda: loaded.keeps_up(AFTER), 60, every=1)
        most = loaded.workers()
        print(f"{broker}, {pool}: p95 under {TARGET:g} s again {time.time() - stepped:.0f} s after the step, {most} workers")
        assert re.search(rf"^load +{pool} +\d of 1-{MOST} +load +5 s$", grouped.make("status").stdout, re.MULTILINE)
        loaded.stops(many)

        few = loaded.sends(BEFORE, seconds)
        fell = time.time()
        until("make balance is killed", lambda: balance.poll() is not None, 240, every=1)
        assert loaded.workers() == most and "is stopped" not in log.read_text()
        balance = starts_balance()
        until("the next one stops that worker", lambda: "was being stopped, and is stopped" in log.read_text(), 60, every=0.5)
        until("one worker is left", lambda: loaded.workers() == 1, 240, every=1)
        print(f"{broker}, {pool}: one worker again {time.time() - fell:.0f} s after the load fell")
        loaded.stops(few)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(balance.pid, signal.SIGTERM)  # who runs the tests in the background has Ctrl-C ignored
        balance.wait(60)
        print(log.read_text())
    until("all have run", lambda: loaded.sent <= {one.id for one in loaded.notes() if one.event == "end"}, 30, every=0.5)
    begun, ended = (Counter((one.id, one.worker) for one in loaded.notes() if one.event == event) for event in ("begin", "end"))
    assert begun == ended, "none was ended by the end of its worker"
    assert {*begun.values()} == {1} and len(begun) == len(loaded.sent), "none ran twice, none is lost"
    over = [one for one in loaded.notes() if one.event == "begin" and one.waited > TARGET]
    print(f"{broker}, {pool}: {len(begun)} tasks, {len(over)} of them waited longer; workers {len({w for _, w in begun})}")
    a_busy_worker_keeps_its_queues(loaded)


def a_busy_worker_keeps_its_queues(loaded: Loaded) -> None:
    """Whoever asks it to retire while it runs a task."""
    long = loaded.sends(0.01, 5)
    task = long.stdout.readline().strip() if long.stdout else ""
    begun = until("it has begun", lambda: [one for one in loaded.notes() if one.id == task], 30, every=0.5)
    words = [sys.executable, "-m", "celery_kit.operate.look.idle", begun[0].worker, "load"]
    asked = subprocess.run(words, cwd=loaded.checkout.folder, env=loaded.environ, check=False)
    assert asked.returncode == 1
    long.communicate()
    assert re.search(rf"^{re.escape(begun[0].worker)} .* consuming +load ", loaded.checkout.make("status").stdout, re.MULTILINE)


class Asleep:
    """A stack of Compose alone, whose workers sleep: which containers there are is all that matters of it."""

    FILE = """
    services:
      worker-load: {image: "%s", command: [sleep, "1000"], entrypoint: [], init: true, healthcheck: {disable: true}}
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.project = folder, f"celery-kit-asleep-{os.getpid()}"
        self.image = f"{self.project}:now"
        self.tag(image("prefork"))
        (folder / "compose.redis.yaml").write_text(self.FILE % self.image)

    def tag(self, name: str) -> None:
        subprocess.run(["docker", "tag", name, self.image], check=True)

    def compose(self, *words: str) -> str:
        command = ["docker", "compose", "-p", self.project, "-f", "compose.redis.yaml", *words]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout

    def inspected(self) -> list[Facts]:
        found = self.compose("ps", "--all", "--quiet").split()
        return list(json.loads(subprocess.run(["docker", "inspect", *found], check=True, capture_output=True).stdout))

    def hosts(self) -> set[str]:
        return {one["Config"]["Hostname"] for one in self.inspected()}


@pytest.fixture
def asleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Asleep]:
    monkeypatch.setattr(scaling, "ROOT", tmp_path)
    stack = Asleep(tmp_path)
    try:
        yield stack
    finally:
        stack.compose("down", "--timeout", "1")
        subprocess.run(["docker", "rmi", stack.image], check=True, capture_output=True)


def test_a_chosen_worker_is_stopped_and_more_are_as_those_that_run(asleep: Asleep) -> None:
    """Compose counts what is there then, and has nothing to replace. The image may have been built again meanwhile."""
    group, containers = Group("load"), Containers(asleep.project, asleep.inspected)
    asleep.compose("up", "--detach", "--scale", "worker-load=2")
    with pytest.raises(NotScaledError, match="before 'make up' has ended well"):
        containers.count(group)
    scaling.note(asleep.project, "compose.redis.yaml", json.loads(asleep.compose("config", "--format", "json")))
    assert containers.count(group) == 2
    first, second = sorted(asleep.hosts())

    subprocess.run(["docker", "stop", "--time", "1", first], check=True, capture_output=True)
    assert containers.count(group) == 1
    containers.more(group, 2)
    assert containers.count(group) == 3 and first not in asleep.hosts() and second in asleep.hosts()
    assert len({one["Config"]["Labels"]["com.docker.compose.config-hash"] for one in asleep.inspected()}) == 1

    before = asleep.hosts()
    containers.end(f"load@{second}")
    assert asleep.hosts() == before - {second}
    with pytest.raises(NotScaledError, match="has no container"):
        containers.end(f"load@{second}")

    images = {one["Image"] for one in asleep.inspected()}
    asleep.tag(image("mail"))
    containers.more(group, 1)
    assert containers.count(group) == 3 and {one["Image"] for one in asleep.inspected()} == images

    asleep.tag(next(iter(images)))
    asleep.compose("up", "--detach", "--scale", "worker-load=1")
    assert containers.count(group) == 1


def test_what_cannot_be_balanced_is_said(grouped: Checkout) -> None:
    """The embedded stack; groups with one number of workers."""
    assert "no stack runs" in grouped.refusal(grouped.make("balance"))
    assert "COOLDOWN" in grouped.refusal(grouped.make("balance", "COOLDOWN=0"))
    assert grouped.make("up", "POOL=solo", **NO_DOCKER).returncode == 0
    assert "'make balance' is for stacks of containers" in grouped.refusal(grouped.make("balance"))
