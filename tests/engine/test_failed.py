"""What failed for good is kept whole, on each broker and pool, and can be sent again. celery_kit/worker/failed.py"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from celery_kit.base.choices import ENGINES
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.brokers.contract import DeadLetter
from celery_kit.operate.look.dead import letters
from celery_kit.pools.table import POOLS
from testbed.servers import SERVERS
from tests.harness.servers import Server, rabbitmq
from tests.harness.waiting import until
from tests.harness.workers import Process, wait_for_worker, worker_argv

#: How many of each sort fail. By hand: FAILING=200 for a thousand.
EACH = int(os.environ.get("FAILING") or 4)
SORTS = ("raises", "retries", "odd", "late", "lost")
#: Seconds; a deadline. Each late task takes one, and solo does one after the other.
PATIENCE = 120 + 4 * EACH


@dataclass
class Place:
    """A broker, a folder, and an app of the kit that sends to it."""

    urls: dict[str, str]
    folder: Path
    app: Celery
    queue: str

    def send(self, task: str, number: int, **options: Any) -> str:
        headers = {"mark": f"mark-{number}"}
        sent = self.app.send_task(
            f"failing.{task}", [number], queue=self.queue, headers=headers, root_id=f"root-{number}", **options
        )
        return str(sent.id)

    @contextmanager
    def worker(self, pool: str, engine: str, **environ: str) -> Iterator[Process]:
        argv = worker_argv("tests.engine.failing", pool, self.queue)
        log = self.folder / f"{pool}-{engine}-{uuid4().hex[:4]}.log"
        one = Process(
            argv, log, {**self.urls, "ENGINE": engine, "FOLDER": str(self.folder), "DATA_DIR": str(self.folder), **environ}
        )
        try:
            wait_for_worker(one)
            yield one
        finally:
            one.kill()

    def command(self, *argv: str) -> "subprocess.CompletedProcess[str]":
        """The command `make dead`, on this place's broker."""
        return subprocess.run(
            [sys.executable, "-m", "celery_kit.operate.look.dead", *argv],
            env={**os.environ, **self.urls, "CELERY_APP": "tests.engine.failing"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def letters(self) -> list[DeadLetter]:
        """The letters of this place's queue."""
        return [one for one in letters(self.app) if one.queue == self.queue]

    def runs(self) -> Counter[str]:
        """How often each cured task ran."""
        return Counter({one.name.removeprefix("ran-"): len(one.read_text()) for one in self.folder.glob("ran-*")})


@pytest.fixture(scope="module", params=SERVERS)
def urls(request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    if "redis" in BROKERS[request.param].schemes:
        with Server() as server:
            yield server.urls
        return
    with rabbitmq("results") as (url, stack):
        results = os.environ.get("CELERY_RESULT_BACKEND") or (stack and stack.results_url(3))
        yield {"CELERY_BROKER_URL": url, "CELERY_RESULT_BACKEND": str(results)}


@pytest.fixture
def place(urls: dict[str, str], tmp_path: Path) -> Iterator[Place]:
    from celery_kit import Kit

    app = Kit("failing-producer", set_as_current=False)
    app.conf.update(broker_url=urls["CELERY_BROKER_URL"], result_backend=urls["CELERY_RESULT_BACKEND"])
    queue = f"failing-{uuid4().hex[:8]}"
    one = Place(urls, tmp_path, app, queue)
    yield one
    one.command("--drop=all")
    app.close()


def all_fail(place: Place, sorts: tuple[str, ...]) -> dict[str, str]:
    """Send EACH of each sort. Returns the sort by id."""
    return {place.send(sort, number): sort for number in range(EACH) for sort in sorts}


def kept(place: Place, count: int) -> Callable[[], list[DeadLetter]]:
    def look() -> list[DeadLetter]:
        found = [one for one in place.letters() if one.kind == "failed"]
        return found if len(found) >= count else []

    return look


REASONS = {
    "raises": "ValueError: number",
    "retries": "KeyError: ",
    "odd": "",  # its class may not reach the worker's main process
    "late": "TimeLimitExceeded",
    "late_softly": "SoftTimeLimitExceeded",
    "lost": "WorkerLostError",
}


@pytest.mark.timeout(2 * PATIENCE)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pool", POOLS)
def test_what_failed_is_kept_and_sent_again(place: Place, pool: str, engine: str) -> None:
    """Failures of five sorts are kept whole. Those that a filter means are sent back, and no others."""
    sorts = SORTS if POOLS[pool].has_children else (*SORTS[:-1], "late_softly")
    sent = all_fail(place, sorts)
    with place.worker(pool, engine) as worker:
        found = until("all are kept", kept(place, len(sent)), PATIENCE, 0.5)
        assert {one.id: one.task for one in found} == {one: f"failing.{sort}" for one, sort in sent.items()}
        for one in found:
            sort = sent[one.id]
            assert REASONS[sort] in one.reason and one.worker.endswith("@test"), one
            assert one.attempts == (3 if sort == "retries" else 1)
            assert sort in ("late", "lost") or "Traceback" in one.traceback, one
        assert worker.alive
        (place.folder / "cured").touch()
        back = place.command("--retry=all", "--task=failing.r*s", "--reason=number", "--kind=failed", "--since=1h")
        assert back.stdout.splitlines()[-1] == f"{EACH} sent back", back
        wanted = {one for one, sort in sent.items() if sort == "raises"}
        until("those ran", lambda: set(place.runs()) == wanted, PATIENCE)
        for number, raised in enumerate(one for one, sort in sent.items() if sort == "raises"):
            value = place.app.AsyncResult(raised).get(timeout=PATIENCE)
            assert value == [f"root-{number}", f"mark-{number}", 0]
        assert {one.id for one in place.letters()} == set(sent) - wanted
        assert place.command("--retry=all").returncode == 0
        until("all ran", lambda: len(place.runs()) == len(sent), PATIENCE)
        until("all are gone", lambda: not place.letters(), PATIENCE, 0.5)
        assert worker.stop() == 0
    assert place.runs() == Counter(dict.fromkeys(sent, 1))


#: Sends all back, and is killed by itself where it has sent half of them.
HALF = """
import os, signal
from celery_kit.operate.look.dead import each
from celery_kit.operate.target import app
each(app, lambda letter: "retry", lambda number, total: 2 * number < total or os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_command_is_given_again(place: Place) -> None:
    """`make dead RETRY=all` is killed half way, and run again: no task is lost, and none is sent twice."""
    count = 60 * (1 + EACH // 20)
    sent = {place.send("raises", number) for number in range(count)}
    with place.worker("solo", "fast"):
        until("all are kept", kept(place, count), PATIENCE, 0.5)
    (place.folder / "cured").touch()
    environ = {**os.environ, **place.urls, "CELERY_APP": "tests.engine.failing"}
    killed = subprocess.run([sys.executable, "-c", HALF], env=environ, cwd=ROOT, check=False, timeout=PATIENCE)
    assert killed.returncode < 0
    left = until("the others are dead letters", place.letters, PATIENCE)
    assert 0 < len(left) < count
    again = 0  # the broker requeues what the killed one held, when it has noticed its end
    while again < len(left) or place.letters():
        again += int(place.command("--retry=all").stdout.split()[-3])
    with place.worker("solo", "fast"):
        until("all ran", lambda: set(place.runs()) == sent, PATIENCE)
    assert place.runs() == Counter(dict.fromkeys(sent, 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_what_did_not_fail_is_not_kept(place: Place, engine: str) -> None:
    """An expected error, Ignore, a task that asked not to be kept, and all of them with FAILED_MOST=0."""
    for number, task in enumerate(("expected", "ignored", "unkept", "succeeds")):
        place.send(task, number)
    last = place.send("raises", 5)
    with place.worker("threads", engine):
        found = until("one is kept", kept(place, 1), PATIENCE, 0.5)
    assert [one.id for one in found] == [last]
    with place.worker("threads", engine, FAILED_MOST="0"):
        place.send("raises", 6)
        assert place.app.send_task("failing.succeeds", [7], queue=place.queue).get(timeout=PATIENCE) == 7
        assert isinstance(place.app.AsyncResult(place.send("raises", 8)).get(timeout=PATIENCE, propagate=False), Exception)
    assert [one.id for one in place.letters()] == [last]


def test_the_oldest_are_dropped(place: Place) -> None:
    """FAILED_MOST bounds how many are kept, FAILED_EXPIRES for how long."""
    sent = [place.send("raises", number) for number in range(8)]
    with place.worker("solo", "fast", FAILED_MOST="5"):
        until("the oldest are gone", lambda: {one.id for one in place.letters()} == set(sent[-5:]), PATIENCE, 0.5)
    with place.worker("solo", "fast", FAILED_EXPIRES="1"):
        place.send("raises", 9)
        until("they have expired", lambda: not {one.id for one in place.letters()} - set(sent), PATIENCE, 0.5)
