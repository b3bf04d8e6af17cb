"""The log lines of workers on the host, on every pool."""

import json
import re
from collections import Counter
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_kit.base.correlation import correlation
from celery_kit.pools.table import POOLS
from tests.harness.waiting import until
from tests.operator.conftest import Machine, Process

PROBES = "tests.operator.probes"


def task(app: Celery, name: str, *args: Any) -> Any:
    return app.signature(f"{PROBES}.{name}", args, immutable=name != "say")


def seen(worker: Process, number: int, **fields: Any) -> list[dict[str, Any]]:
    """Wait for at least some number of lines with these fields, and return them."""
    until(f"{number} lines with {fields}", lambda: len(worker.of(**fields)) >= number, 30)
    return worker.of(**fields)


@pytest.mark.parametrize("pool", POOLS)
def test_each_line_of_a_task_says_which_task_where_and_how_long(machine: Machine, app: Celery, pool: str) -> None:
    worker = machine.worker(pool)
    sent = task(app, "say").apply_async()
    arrived, said, ended = seen(worker, 3, task_id=sent.id)
    for line in (arrived, said, ended):
        assert (line["task"], line["queue"], line["pool"], line["attempt"]) == (f"{PROBES}.say", "celery", pool, 1)
        assert line["worker"].startswith("w0@")
        assert line["correlation"] == sent.id, "its own root id, where nobody gave one"
    assert arrived["message"].endswith("received") and 0 <= arrived["waited"] < 60 and "seconds" not in arrived
    assert said["message"] == "said by a task" and said["logger"] == PROBES
    assert "succeeded in" in ended["message"] and 0 <= said["seconds"] <= ended["seconds"] < 60


@pytest.mark.parametrize("pool", POOLS)
def test_a_correlation_follows_into_all_that_comes_of_a_task(machine: Machine, app: Celery, pool: str) -> None:
    """A chain, a group, a chord, a retry, and a task sent by a task."""
    worker = machine.worker(pool)
    say, send_on = task(app, "say"), task(app, "send_on")
    with correlation("order-7"):
        chain(say, say).apply_async()  # 2
        group(say, say).apply_async()  # 2
        chord([say, say], say).apply_async()  # 3
        task(app, "again").apply_async()  # 1
        send_on.apply_async()  # 1
    with correlation("order-8"):
        send_on.apply_async()
    assert len(seen(worker, 9, message="said by a task", correlation="order-7")) == 9
    assert len(seen(worker, 1, message="said by a task", correlation="order-8")) == 1
    assert not [line for line in worker.lines() if line.get("task_id") and line["correlation"] not in ("order-7", "order-8")]


@pytest.mark.parametrize("pool", POOLS)
def test_a_retry_counts_its_attempts_and_a_failure_has_its_traceback(machine: Machine, app: Celery, pool: str) -> None:
    worker = machine.worker(pool)
    sent = task(app, "again").apply_async()
    ended = until("its end", lambda: [line for line in worker.of(task_id=sent.id) if "succeeded in" in line["message"]], 30)
    assert ended[0]["attempt"] == 2
    assert {line["attempt"] for line in worker.of(task_id=sent.id)} == {1, 2}
    failed = task(app, "fail").apply_async()
    (line,) = seen(worker, 1, task_id=failed.id, level="ERROR")
    assert 'raise ValueError("as asked")' in line["exc_info"] and line["seconds"] >= 0


@pytest.mark.parametrize("pool", [name for name, pool in POOLS.items() if "tasks_overlap" not in pool.limits])
def test_tasks_that_overlap_do_not_take_each_others_names(machine: Machine, app: Celery, pool: str) -> None:
    worker = machine.worker(pool)
    ids = {task(app, "meet", number).apply_async().id: number for number in range(4)}
    until("all said", lambda: len(_meetings(worker)) == 8, 30)
    lines = _meetings(worker)
    assert Counter(line["task_id"] for line in lines) == dict.fromkeys(ids, 2)
    assert all(line["message"].split()[1] == str(ids[line["task_id"]]) for line in lines)


def _meetings(worker: Process) -> list[dict[str, Any]]:
    return [line for line in worker.lines() if line["message"].startswith(("begin ", "end "))]


@pytest.mark.parametrize("pool", POOLS)
def test_a_log_tells_what_happened_in_its_order(machine: Machine, app: Celery, pool: str) -> None:
    """Lines are written in batches, and on prefork by several processes: none is before the line about its task's arrival."""
    worker = machine.worker(pool)
    ids = [task(app, "say").apply_async().id for _ in range(300)]
    until("all have ended", lambda: worker.said.count("succeeded in") == len(ids), 60)
    messages: dict[str, list[str]] = {name: [] for name in ids}
    for line in worker.lines():
        if line.get("task_id") in messages:
            messages[line["task_id"]].append(re.sub(r"^Task .*\] (\w+).*", r"\1", line["message"]))
    assert [words for words in messages.values() if words != ["received", "said by a task", "succeeded"]] == []


def test_a_killed_tasks_line_is_the_parents_and_names_the_task(machine: Machine, app: Celery) -> None:
    """Prefork's parent logs that a time limit was exceeded, although the task ran in a child."""
    worker = machine.worker("prefork")
    sent = task(app, "wait", 60).apply_async(time_limit=1)
    (line,) = seen(worker, 1, task_id=sent.id, level="ERROR")
    assert "Hard time limit" in line["message"] and line["process"] == worker.process.pid
    assert line["task"] == f"{PROBES}.wait"


def test_every_line_of_a_container_is_an_object(machine: Machine, app: Celery) -> None:
    """All output, including the banner."""
    worker = machine.worker("threads")
    task(app, "say").apply_async()
    seen(worker, 1, message="said by a task")
    worker.stop()
    words = [line for line in worker.said.splitlines() if line and not line.startswith("worker: ")]
    assert words and all(json.loads(line)["time"] for line in words)


def test_in_a_terminal_lines_are_for_people(machine: Machine, app: Celery) -> None:
    worker = machine.worker("threads", LOG_FORMAT="text")
    task(app, "say").apply_async()
    until("it is said", lambda: "said by a task  queue=celery attempt=1" in worker.said, 30)
    assert not worker.lines()


def test_a_form_that_is_not_known_is_refused_in_one_line(machine: Machine) -> None:
    process = machine.start("app.worker", LOG_FORMAT="xml")
    assert process.process.wait(60) == 2
    assert process.said.splitlines() == ["celery-kit: LOG_FORMAT=xml is not known; allowed: json, text"]
