"""Tasks of a busy worker on threads that are terminated about when they end. celery_kit/pools/threads.py"""

import json
import random
import re
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from celery_kit.base.choices import ENGINES
from tests.engine.rig import done, producer, send, worker
from tests.harness.servers import Server
from tests.harness.waiting import until
from tests.harness.workers import CONCURRENCY

#: Number of terminated tasks, and of the tasks between them that are not.
COUNT = 500


def states(server: Server, ids: list[str]) -> list[str]:
    values: Any = server.results.mget([f"celery-task-meta-{one}" for one in ids])
    return [json.loads(value)["status"] for value in values]


@pytest.mark.parametrize("engine", ENGINES)
def test_each_has_one_outcome_and_reaches_nobody_else(server: Server, tmp_path: Path, engine: str) -> None:
    """SUCCESS or REVOKED, stored once, and acknowledged. The other tasks succeed, and every thread goes on."""
    queue, app = uuid4().hex[:8], producer(server)
    told, spared = [], []
    for _ in range(COUNT):
        told += send(app, queue, 1, "engine.step", (random.uniform(0, 0.2), str(tmp_path)))
        spared += send(app, queue, 1, "engine.step", (random.uniform(0, 0.01), str(tmp_path)))
    due: dict[str, float] = {}
    with worker(server, "threads", engine, queue) as one:

        def revoke() -> bool:
            now = time.monotonic()
            for path in tmp_path.iterdir():
                due.setdefault(path.name, now + random.uniform(0, 0.05))
            ready = {task for task, when in due.items() if when <= now} & waiting
            if ready:
                app.control.revoke(list(ready), terminate=True)
                waiting.difference_update(ready)
            return done(server, [*told, *spared]) == 2 * COUNT

        waiting = set(told)
        until("every task has an outcome", revoke, 180)
        ended = dict(zip(told, states(server, told), strict=True))
        assert set(ended.values()) == {"SUCCESS", "REVOKED"}, ended
        assert set(states(server, spared)) == {"SUCCESS"}
        long = send(app, queue, CONCURRENCY["threads"], "engine.step", (600, str(tmp_path)))
        until("every thread has a task", lambda: all((tmp_path / task).exists() for task in long))
        app.control.revoke(long, terminate=True)
        until("they have ended", lambda: done(server, long) == len(long))
        until("nothing is left", lambda: not server.broker.llen(queue) + server.broker.hlen("unacked"))
        assert one.stop() == 0
    log = one.log.read_text()
    succeeded = re.findall(r"\[([0-9a-f-]{36})\] succeeded", log)
    assert sorted(succeeded) == sorted([task for task, state in ended.items() if state == "SUCCESS"] + spared)
    assert "Traceback" not in log and "ERROR" not in log, log
