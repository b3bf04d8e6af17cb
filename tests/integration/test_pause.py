"""Pausing queues and resuming them, and what the commands print for other programs."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from kombu.utils.imports import symbol_by_name

from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.test_control import command, listening, node
from tests.integration.test_health import SECONDS, probed


def look(cell: Cell, module: str, *words: str) -> Any:
    """What a command prints with --json, on the host, as an operator: one document, and nothing beside it."""
    done = cell.running.python(f"celery_kit.operate.look.{module}", "--json", *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def say(cell: Cell, word: str, queue: str) -> Any:
    return look(cell, "pause", "--known", queue, word, queue)


def consumes(cell: Cell, name: str) -> tuple[list[str], list[str]]:
    """The queues that a worker consumes, and those of its queues that it knows to be paused."""
    answer = command(cell, name, "vitals") or {}
    return answer.get("consuming", []), answer.get("paused", [])


def test_pause(cell: Cell) -> None:
    """A paused queue's tasks wait until it is resumed; its worker ends the task that it runs, and stays healthy."""
    app = cell.running.app()  # of its own: see the limit `state_after_get`
    with probed(cell) as (worker, queue, probe), app.connection_for_write():
        name = f"probed@{worker.docker.short_id}"
        listening(cell, name)
        with cell.waiting_call(queue=queue) as (result, go):
            assert say(cell, "pause", queue)["queues"] == [{"name": queue, "paused": True, "changed": True, "waiting": 0}]
            waits = [cell.send("probes.add", 2, 2, queue=queue) for _ in range(2)]
            go()
            assert result.get(timeout=WAIT)
        until("it knows", lambda: consumes(cell, name) == ([], [queue]), WAIT)
        nap, seen = app.send_task("time_probes.nap", (3 * SECONDS,)), set()

        def ended() -> bool:
            seen.add(probe.says())
            return bool(nap.ready())

        until("an idle worker would count as stuck by now", ended, WAIT)
        assert seen == {(True, True)}
        assert {one.state for one in waits} == {"PENDING"}
        again = say(cell, "pause", queue)
        assert [(one["paused"], one["changed"], one["waiting"]) for one in again["queues"]] == [(True, False, 2)]
        assert [(one["worker"], one["paused"]) for one in again["workers"] if one["paused"]] == [(name, [queue])]
        assert not say(cell, "resume", queue)["queues"][0]["paused"]
        assert [one.get(timeout=WAIT) for one in waits] == [4, 4]
    app.close()


def test_pause_holds_for_a_worker_that_starts(cell: Cell) -> None:
    """A worker that starts while its queue is paused consumes it only once it is resumed."""
    queue = f"{cell.mark}.queue"
    say(cell, "pause", queue)
    with cell.running.beside("later", OPTIONS=f"-Q {queue} -c 1") as worker:
        name = listening(cell, f"later@{worker.docker.short_id}")
        assert consumes(cell, name) == ([], [queue])
        waits = cell.send("queues_probes.where", queue=queue)
        command(cell, name, "add_consumer", queue=queue)
        cell.run("probes.add", 1, 2)
        assert (waits.state, consumes(cell, name)) == ("PENDING", ([], [queue]))
        say(cell, "resume", queue)
        assert waits.get(timeout=WAIT) == name


def test_pause_of_one_queue_of_two(cell: Cell) -> None:
    """A worker goes on with its other queues."""
    name = node(cell, "watched")
    say(cell, "pause", "watched.too")
    try:
        until("it knows", lambda: consumes(cell, name) == (["watched"], ["watched.too"]), WAIT)
        waits = cell.send("queues_probes.where", queue="watched.too")
        assert cell.run("queues_probes.where", queue="watched") == name
        assert waits.state == "PENDING"
    finally:
        say(cell, "resume", "watched.too")
    assert waits.get(timeout=WAIT) == name


def test_pauses_at_once(cell: Cell) -> None:
    """Of several pauses and resumes at the same time one holds, and the worker keeps to that one."""
    name, queue = node(cell, "watched"), "watched.too"
    operator = cell.running.operator()
    pauses = symbol_by_name(str(cell.combination.broker.pauses))()

    def change(number: int) -> None:
        with operator.connection_for_write() as connection:
            for turn in range(4):
                pauses.put(connection, queue, (number + turn) % 2 == 0)
                operator.control.broadcast("pauses")

    def holds() -> tuple[list[str], list[str]]:
        with operator.connection_for_write() as connection:
            stopped = bool(pauses.paused(connection, [queue]))
        return (["watched"], [queue]) if stopped else (["watched", queue], [])

    try:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(change, range(4)))
        end = holds()
        until("the worker keeps to it", lambda: tuple(sorted(one) for one in consumes(cell, name)) == end, WAIT)
        assert holds() == end
    finally:
        say(cell, "resume", queue)
    until("it consumes both", lambda: sorted(consumes(cell, name)[0]) == ["watched", queue], WAIT)
    operator.close()


def test_status_as_json(cell: Cell) -> None:
    """What `make status` shows, as one JSON document."""
    name = node(cell)
    found = look(cell, "status")
    assert found["broker"]["answers"] and found["unasked"] is None
    # Of RabbitMQ, whose management interface is not asked here, the default queue alone is known.
    assert {"single", "celery"} & {one["name"] for one in found["queues"]}
    assert {one["name"]: one["consuming"] for one in found["workers"]}[name] == ["single"]
