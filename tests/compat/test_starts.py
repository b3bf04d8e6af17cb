"""How a worker or beat starts with few resources: one processor, no writable file."""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import docker
import pytest

from celery_kit.base.target import ROOT
from celery_kit.operate.stacks.images import image
from celery_kit.pools.table import POOLS
from tests.compat.rig import APP, KIT, SIDES, Place, Side, workers
from tests.harness.containers import LABELS
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY, worker_argv


@pytest.fixture
def one_processor() -> Iterator[None]:
    """Limit processes that this thread starts to one processor, whatever the machine has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


#: By how the size is given: the option `-c`, and the settings.
SAID: dict[str, tuple[str, dict[str, Any]]] = {
    "the option": ("auto", {}),
    "nothing": ("none", {}),
    "the setting": ("none", {"worker_concurrency": "auto"}),
}


#: Pool, and how the size is given. The quick run has the first two.
SIZED = [
    ("prefork", "the option"),
    ("threads", "nothing"),
    ("prefork", "nothing"),
    ("prefork", "the setting"),
    ("threads", "the option"),
]


@pytest.mark.parametrize(("pool", "said"), SIZED[: 2 if os.environ.get("QUICK") else None])
@pytest.mark.usefixtures("one_processor")
def test_auto_is_the_processors_that_a_worker_may_use(places: Callable[[str], Place], pool: str, said: str) -> None:
    """On prefork as with plain Celery. The kit's other pools have their own defaults. The kit's default is `auto`."""
    concurrency, settings = SAID[said]
    sides = [Side(name, places("redis"), {"SETTINGS": json.dumps(settings)}) for name in SIDES]
    with workers(*sides, pool=pool, concurrency=concurrency) as started:
        sizes = {name: side.client("starts:size", side.pid) for name, side in started.items()}
    kits = POOLS[pool].concurrency or 1
    assert sizes == {PLAIN_CELERY: os.cpu_count() if said == "nothing" else 1, **dict.fromkeys(KIT, kits)}


#: An entry of beat's.
EACH_SECOND = {"task": "compat.add", "schedule": 1, "args": [1, 2]}


@contextmanager
def read_only(side: Side, *argv: str) -> Iterator[Any]:
    """A container with a process of this side: the root and the working folder are read-only, and there is no tmpfs."""
    code = {str(ROOT / name): {"bind": f"/srv/{name}", "mode": "ro"} for name in ("app", "celery_kit", "tests", "testbed")}
    container = docker.from_env().containers.run(
        image("prefork"),
        ["python", *argv],
        detach=True,
        read_only=True,
        network_mode="host",
        environment={
            **side.own,
            "CASE": "basics",
            "DATA_DIR": "/srv",  # the image's own folder is a volume
            "SETTINGS": json.dumps({"beat_schedule": {"often": EACH_SECOND}}),
        },
        volumes=code,
        labels=LABELS,
        healthcheck={"test": ["NONE"]},
    )
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def outcome(side: Side, ready: str, *argv: str) -> tuple[str, list[str]]:
    """`runs`, or `exits with` a code and the lines of its log."""
    with read_only(side, *argv) as container:

        def log() -> str:
            return str(container.logs().decode())

        def over() -> bool:
            container.reload()
            return ready in log() or container.status == "exited"

        until(f"{side.name} has started, or not", over, 90)
        if ready in log():
            return "runs", []
        return f"exits with {container.wait()['StatusCode']}", log().splitlines()


#: By what is started: its log line when it works; if it does not start, plain Celery's error and the text of the kit's.
WITHOUT_FILES = {
    "prefork": ("ready.", ("No usable temporary directory", "TMPDIR")),
    "threads": ("ready.", None),
    "beat": ("Sending due task", ("Read-only file system", "DATA_DIR")),
}


@pytest.mark.parametrize("what", WITHOUT_FILES)
def test_who_may_write_nothing_runs_or_says_in_one_line_what_it_needs(places: Callable[[str], Place], what: str) -> None:
    """If plain Celery exits with a traceback, the kit exits with one line that says what to set. If Celery runs, so does it."""
    ready, fails = WITHOUT_FILES[what]
    sides = [Side(name, places("redis")) for name in SIDES]
    argv = {side.name: worker_argv(APP, what, side.queue) for side in sides if what != "beat"}
    beat = ["-m", "celery", "-A", APP, "beat", "-l", "INFO", "--pidfile="]
    with ThreadPoolExecutor() as at_once:
        found = dict(zip(SIDES, at_once.map(lambda side: outcome(side, ready, *argv.get(side.name, beat)), sides), strict=True))
    if not fails:
        assert found == dict.fromkeys(SIDES, ("runs", []))
        return
    code, lines = found[PLAIN_CELERY]
    assert code == "exits with 1" and any("Traceback" in line for line in lines) and fails[0] in lines[-1]
    for name in KIT:
        code, lines = found[name]
        assert code == "exits with 2" and not any("Traceback" in line for line in lines), lines
        assert "celery-kit: " in lines[-1] and fails[1] in lines[-1]
