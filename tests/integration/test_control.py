"""Remote control: asking workers, changing them while they run, and the events that they send."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.events.state import State
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded

from tests.harness.combinations import COMBINATIONS
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import ENGINE

#: Where queues have types, and all but the default one would be classic.
TYPED_QUEUES = [one for one in COMBINATIONS if not one.limit("quorum_queues")]
#: Where Celery itself terminates no task, and says so.
BY_KIT = [one for one in COMBINATIONS if one.pool.name == "threads"]
TERMINATES = "Celery answers with an error, and the task goes on to its end: celery_kit/pools/threads.py"


def node(cell: Cell, role: str = "single") -> str:
    """The node name of a role's worker; started, and waited for, where it does not run yet."""
    worker = None if role == "spare" else cell.running.workers.get(role)
    return (
        f"{role}@{worker.docker.short_id}" if worker else listening(cell, f"{role}@{cell.running.worker(role).docker.short_id}")
    )


def listening(cell: Cell, name: str) -> str:
    """Wait until a worker that has just started answers: it may consume tasks a moment before it hears commands."""
    until("it hears commands", lambda: cell.app.control.ping([name], timeout=1, limit=1), 30)
    return name


def command(cell: Cell, to: str, name: str, seconds: float = WAIT, **arguments: Any) -> Any:
    """Send one worker a command; gives its answer, or None after `seconds`."""
    answers = cell.app.control.broadcast(name, arguments=arguments, destination=[to], reply=True, limit=1, timeout=seconds)
    return answers[0][to] if answers else None


def consume(cell: Cell, queue: str, role: str = "single", **more: Any) -> None:
    """Have a role's worker consume one more queue; gives back when it does."""
    to = node(cell, role)
    assert "ok" in command(cell, to, "add_consumer", queue=queue, **more)
    until("it consumes", lambda: queue in [found["name"] for found in command(cell, to, "active_queues")], 10)


def leave(cell: Cell, queue: str, role: str = "single") -> None:
    command(cell, node(cell, role), "cancel_consumer", queue=queue)


@contextmanager
def consumed(cell: Cell, queue: str) -> Iterator[None]:
    """Have the worker that runs one task at a time consume a test's own queue, too."""
    consume(cell, queue)
    try:
        yield
    finally:
        leave(cell, queue)


@contextmanager
def held(cell: Cell, number: int = 1, queue: str = "single", start: int | None = None) -> Iterator[list[Any]]:
    """As many tasks that wait for their end, `start` of them (or all) running; their results. They end with the block."""
    results = [cell.send("control_probes.hold", cell.mark, queue=queue) for _ in range(number)]
    try:
        until("the task runs", lambda: len(running(cell)) >= (number if start is None else start), 30)
        yield results
    finally:
        (cell.running.data / f"{cell.mark}.open").touch()


def running(cell: Cell) -> set[str]:
    """The ids of those that have started."""
    return {path.name.split(".")[-2] for path in cell.running.data.glob(f"{cell.mark}.*.runs")}


def log(cell: Cell) -> list[str]:
    """What the probes noted for this test."""
    path = cell.running.data / cell.mark
    return path.read_text().splitlines() if path.exists() else []


def test_ping(cell: Cell) -> None:
    """A worker answers a ping."""
    single = node(cell)
    assert cell.app.control.ping([single], timeout=WAIT, limit=1) == [{single: {"ok": "pong"}}]


def test_ping_during_a_task(cell: Cell) -> None:
    """A worker whose every slot is taken answers a ping."""
    single = node(cell)
    with held(cell) as (result,):
        answer = command(cell, single, "ping", 1.5 if cell.limit else WAIT)
        assert answer == (None if cell.limit else {"ok": "pong"})
        assert running(cell) and not result.ready()
    assert result.get(timeout=WAIT) == "held"
    assert command(cell, single, "ping") == {"ok": "pong"}


def test_one_destination(cell: Cell) -> None:
    """A command to one worker reaches that one alone; to nobody by name, all."""
    names = {node(cell), node(cell, "main")}
    for name in names:
        assert [*(cell.app.control.inspect([name], timeout=WAIT).ping() or {})] == [name]
    answers = cell.app.control.ping(timeout=WAIT, limit=len(cell.running.workers))
    assert names <= {name for answer in answers or [] for name in answer}


def test_stats(cell: Cell) -> None:
    """Statistics tell the pool, its size, and what ran how often."""
    single = node(cell)

    def done() -> int:
        return int(command(cell, single, "stats")["total"].get("probes.add", 0))

    before = done()
    cell.run("probes.add", 1, 2, queue="single")
    until("the task is counted", lambda: done() == before + 1, 10)
    stats = command(cell, single, "stats")
    assert stats["pool"]["implementation"] == cell.combination.pool.kind
    assert (stats["pid"], stats["pool"]["max-concurrency"]) == (1, 1)
    cell.saw(stats["pool"])


def test_active(cell: Cell) -> None:
    """The running tasks are listed."""
    single = node(cell)
    with held(cell) as (result,):
        answer = command(cell, single, "active", 1.5 if cell.limit else WAIT)
        if cell.limit:
            assert answer is None
        else:
            assert [(task["id"], task["name"], task["args"]) for task in answer] == [
                (result.id, "control_probes.hold", [cell.mark])
            ]
    result.get(timeout=WAIT)


def test_scheduled(cell: Cell) -> None:
    """Tasks that a worker holds until their ETA are listed."""
    single = node(cell)
    eta = datetime.now(UTC) + timedelta(seconds=3)
    result = cell.send("probes.add", 1, 2, queue="single", eta=eta)
    if cell.limit and (ENGINE == "fast" or cell.combination in TYPED_QUEUES):  # otherwise workers hold them, as Celery's do
        cell.run("probes.add", 0, 0, queue="single")
        assert command(cell, single, "scheduled") == []
    else:
        (task,) = until("the task is listed", lambda: command(cell, single, "scheduled"), 10)
        assert task["request"]["id"] == result.id and datetime.fromisoformat(task["eta"]) == eta
    assert result.get(timeout=WAIT) == 3


def test_registered(cell: Cell) -> None:
    """The registered tasks are listed, those that were dropped in too."""
    assert {"control_probes.hold", "mail.send_email"} <= set(command(cell, node(cell), "registered"))


def test_conf(cell: Cell) -> None:
    """A worker tells its settings, without the broker's password."""
    conf = command(cell, node(cell), "conf", with_defaults=False)
    assert conf["task_acks_late"] is True
    assert not re.search(r"kit:(?!\*)[^@]*@", str(conf))
    cell.saw(conf["broker_url"])


def test_query_task(cell: Cell) -> None:
    """A worker tells what it does with a task."""
    single = node(cell)
    with held(cell) as (result,):
        answer = command(cell, single, "query_task", 1.5 if cell.limit else WAIT, ids=[result.id])
        assert (answer is None) if cell.limit else (answer[result.id][0] == "active")
    result.get(timeout=WAIT)


def test_revoke(cell: Cell) -> None:
    """A task that is revoked before it starts never runs, and its state says so."""
    single = node(cell)
    result = cell.send("control_probes.note", cell.mark, "revoked", queue="single", countdown=2)
    assert "revoked" in command(cell, single, "revoke", task_id=result.id)["ok"]
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    assert result.state == "REVOKED"
    cell.run("control_probes.note", cell.mark, "after", queue="single")
    assert [line.split()[1] for line in log(cell)] == ["after"]


@pytest.mark.by_kit(BY_KIT, TERMINATES)
def test_terminate(cell: Cell) -> None:
    """revoke(terminate=True) ends a running task; the worker goes on with the next."""
    single = node(cell)
    with held(cell) as (result,):
        answer = command(cell, single, "revoke", 1.5 if cell.limit else WAIT, task_id=result.id, terminate=True)
        cell.saw(answer)
        if not cell.limit:
            with pytest.raises(TaskRevokedError):
                result.get(timeout=WAIT)
            assert result.state == "REVOKED"
    if cell.limit:
        assert answer is None or "error" in answer
        assert result.get(timeout=WAIT) == "held"
    assert cell.run("probes.add", 1, 2, queue="single") == 3
    assert (cell.running.data / f"{cell.mark}.{result.id}.ended").exists() == bool(cell.limit)


def test_terminate_of_a_waiting_call(cell: Cell) -> None:
    """revoke(terminate=True) ends a task in the middle of a call that waits: here for a byte that never comes."""
    # With Celery 5.6 by fix early_revoked: it would be ready at once.
    single = node(cell)
    with cell.waiting_call(queue="single") as (result, end):
        answer = command(cell, single, "revoke", 1.5 if cell.limit else WAIT, task_id=result.id, terminate=True)
        if cell.limit:
            cell.run("probes.add", 1, 2, countdown=1)  # by then a task that can be ended has ended
            assert not result.ready()
            end()
        outcome = result.get(timeout=WAIT, propagate=False)
    cell.saw(f"{answer}; {outcome!r}")
    if cell.limit and cell.limit.kind == "cannot":
        assert (answer, outcome) == (None, "got 1")
    else:
        assert isinstance(outcome, TaskRevokedError), outcome
        assert answer == {"ok": f"terminate: {result.id}"}
    assert cell.run("probes.add", 1, 2, queue="single") == 3


def test_rate_limit(cell: Cell) -> None:
    """A rate limit given at run time holds: four starts at two a second take their time."""
    single, name = node(cell), "control_probes.note_rarely"
    assert command(cell, single, "rate_limit", task_name=name, rate_limit="2/s") == {"ok": "new rate limit set successfully"}
    results = [cell.send(name, cell.mark, str(number), queue="single") for number in range(4)]
    for result in results:
        result.get(timeout=WAIT)
    starts = [float(line.split()[0]) for line in log(cell)]
    assert len(starts) == 4 and max(starts) - min(starts) > 0.75
    assert command(cell, single, "rate_limit", task_name=name, rate_limit=0)["ok"].startswith("rate limit disabled")
    cell.saw([round(start - starts[0], 2) for start in starts])


@pytest.mark.by_kit(COMBINATIONS, "Celery answers ok and goes on with the old limits: fix time_limit")
def test_time_limit_by_control(cell: Cell) -> None:
    """A time limit given at run time ends the task that takes longer."""
    single, name = node(cell), "control_probes.hold_limited"
    assert command(cell, single, "time_limit", task_name=name, hard=1, soft=0.5) == {"ok": "time limits set successfully"}
    result = cell.send(name, cell.mark, queue="single")
    until("the task runs", (cell.running.data / f"{cell.mark}.runs").exists, 30)
    with pytest.raises((TimeLimitExceeded, SoftTimeLimitExceeded)) as caught:
        result.get(timeout=WAIT)
    cell.saw(repr(caught.value))
    assert cell.run("probes.add", 1, 2, queue="single") == 3


def shrink(cell: Cell, to: str) -> None:
    """Have a worker run one task less at once; it cannot as long as all its processes are busy, or have just been."""
    until("it shrinks", lambda: command(cell, to, "pool_shrink", n=1) == {"ok": "pool will shrink"}, 10)


def test_pool_grow(cell: Cell) -> None:
    """A worker that is told to grow runs one more task at once."""
    single = node(cell)
    answer = command(cell, single, "pool_grow", n=1)
    cell.saw(answer)
    if cell.limit:
        assert ("error" in answer) == (cell.limit.kind == "cannot")
        with held(cell, 2, start=1) as results:
            cell.run("probes.add", 1, 2)
            assert len(running(cell)) == 1
    else:
        assert answer == {"ok": "pool will grow"}
        with held(cell, 2) as results:
            assert len(running(cell)) == 2
    for result in results:
        result.get(timeout=WAIT)
    if "ok" in answer:
        shrink(cell, single)


def test_pool_shrink(cell: Cell) -> None:
    """A worker that had grown and is told to shrink runs one task less at once."""
    single = node(cell)
    command(cell, single, "pool_grow", n=1)
    if cell.limit:
        cell.saw(command(cell, single, "pool_shrink", n=1))
        assert "AttributeError" in cell.noted[0]  # a pool that can says "busy" at times
    else:
        shrink(cell, single)
    with held(cell, 2, start=1) as results:
        cell.run("probes.add", 1, 2)
        assert len(running(cell)) == 1
    for result in results:
        result.get(timeout=WAIT)


def test_autoscale(cell: Cell) -> None:
    """A worker with --autoscale=4,1 grows with its work."""
    worker = cell.running.start("elastic", OPTIONS="-Q elastic --autoscale=4,1")
    try:
        if cell.limit and cell.limit.kind == "cannot":
            assert worker.exit_code() == 2
            cell.saw(worker.logs().strip())
            assert "celery-kit: --autoscale is not supported on pool" in cell.noted[0]
            return
        worker.ready()
        with held(cell, 3, queue="elastic", start=1 if cell.limit else 3) as results:
            cell.run("probes.add", 1, 2)
            assert len(running(cell)) == (1 if cell.limit else 3)
        for result in results:
            result.get(timeout=WAIT)
    finally:
        worker.docker.remove(force=True, v=True)
        del cell.running.workers["elastic"]


@pytest.mark.by_kit(TYPED_QUEUES, "Celery declares a classic queue here, and the broker refuses it: fix add_consumer")
def test_add_consumer(cell: Cell) -> None:
    """A running worker is told to consume one more queue, by its name."""
    single, queue = node(cell), f"{cell.mark}.queue"
    waits = cell.send("queues_probes.where", queue=queue)
    assert command(cell, single, "add_consumer", queue=queue) == {"ok": f"add consumer {queue}"}
    assert waits.get(timeout=WAIT) == single
    assert queue in [found["name"] for found in command(cell, single, "active_queues")]
    assert cell.run("queues_probes.where", queue=queue) == single
    command(cell, single, "cancel_consumer", queue=queue)


def test_cancel_consumer(cell: Cell) -> None:
    """A running worker is told to leave a queue; its tasks wait from then on."""
    single, queue = node(cell), f"{cell.mark}.queue"
    command(cell, single, "add_consumer", queue=queue)
    assert cell.run("queues_probes.where", queue=queue) == single
    command(cell, single, "cancel_consumer", queue=queue)
    until("it has left", lambda: queue not in [found["name"] for found in command(cell, single, "active_queues")], 10)
    waits = cell.send("queues_probes.where", queue=queue)
    cell.run("probes.add", 1, 2, queue="single")
    assert waits.state == "PENDING"
    command(cell, single, "add_consumer", queue=queue)
    assert waits.get(timeout=WAIT) == single
    command(cell, single, "cancel_consumer", queue=queue)


def test_own_command(cell: Cell) -> None:
    """A remote control command of the user's own, dropped in with the tasks."""
    assert command(cell, node(cell), "doubled", number=21) == {"doubled": 42}


def test_shutdown(cell: Cell) -> None:
    """A worker is told to shut down, and its exit code is 0."""
    worker = cell.running.worker("spare")
    cell.app.control.shutdown([node(cell, "spare")])
    assert worker.exit_code() == 0


def watch(cell: Cell, act: Callable[[], Any], enough: Callable[[list[dict[str, Any]]], Any], seconds: float = 30) -> list[Any]:
    """Receive events while `act` does something, until there are `enough` or `seconds` are over."""
    seen: list[dict[str, Any]] = []
    with cell.app.connection_for_read() as connection:
        receiver = cell.app.events.Receiver(connection, handlers={"*": seen.append})
        with receiver.Consumer() as (consuming, _, _):

            def more() -> None:
                with suppress(TimeoutError):
                    consuming.drain_events(timeout=0.2)

            more()  # from here on the broker knows that somebody listens
            act()
            deadline = datetime.now(UTC) + timedelta(seconds=seconds)
            while not enough(seen) and datetime.now(UTC) < deadline:
                more()
    return seen


LIFE = ["task-sent", "task-received", "task-started", "task-succeeded"]


def of_task(seen: list[dict[str, Any]], task_id: str) -> list[str]:
    """The types of a task's events, as they came."""
    return [event["type"] for event in seen if event.get("uuid") == task_id]


def test_task_events(cell: Cell) -> None:
    """A worker with -E and a producer with task_send_sent_event tell of every step of a task."""
    node(cell, "watched")
    app = cell.running.app()
    app.conf.task_send_sent_event = True
    sent: list[Any] = []
    seen = watch(
        cell,
        lambda: sent.append(app.send_task("probes.add", (1, 2), queue="watched")),
        lambda seen: set(LIFE) <= set(of_task(seen, sent[0].id)),
    )
    assert sorted(of_task(seen, sent[0].id)) == sorted(LIFE)
    clocks = {event["type"]: event["clock"] for event in seen if event.get("uuid") == sent[0].id}
    assert clocks["task-received"] < clocks["task-started"] < clocks["task-succeeded"]
    assert sent[0].get(timeout=WAIT) == 3
    app.close()


def test_failure_event(cell: Cell) -> None:
    """A failed task's event holds its error."""
    node(cell, "watched")
    seen = watch(
        cell,
        lambda: cell.send("probes.fail", cell.mark, queue="watched"),
        lambda seen: any(event["type"] == "task-failed" for event in seen),
    )
    (failed,) = [event for event in seen if event["type"] == "task-failed"]
    assert "ProbeError" in failed["exception"] and cell.mark in failed["exception"]


def test_event_state(cell: Cell) -> None:
    """What a monitor keeps, celery.events.State, knows the worker and the task by events alone."""
    watched = node(cell, "watched")
    sent: list[Any] = []
    state: Any = State()
    seen = watch(
        cell,
        lambda: sent.append(cell.send("probes.add", 2, 2, queue="watched")),
        lambda seen: "task-succeeded" in of_task(seen, sent[0].id),
    )
    for event in seen:
        state.event(event)
    task = state.tasks[sent[0].id]
    assert (task.state, task.name, task.result, task.worker.hostname) == ("SUCCESS", "probes.add", "4", watched)
    assert watched in state.workers


def test_worker_heartbeats(cell: Cell) -> None:
    """A worker's heartbeats tell monitors that it is alive."""
    watched = node(cell, "watched")

    def beats(seen: list[dict[str, Any]]) -> list[Any]:
        return [event for event in seen if event["type"] == "worker-heartbeat" and event["hostname"] == watched]

    seen = watch(cell, lambda: None, beats, 3 if cell.limit else 30)
    assert bool(beats(seen)) == (not cell.limit)


def test_enable_events(cell: Cell) -> None:
    """Events are switched on and off while a worker runs."""
    single = node(cell)
    answer = command(cell, single, "enable_events")
    if cell.limit:
        assert answer == {"error": "event dispatcher unavailable"}
        return
    assert answer["ok"].startswith("task events ")  # an earlier try may have left them enabled
    sent: list[Any] = []
    seen = watch(
        cell,
        lambda: sent.append(cell.send("probes.add", 1, 2, queue="single")),
        lambda seen: len(of_task(seen, sent[0].id)) >= len(LIFE[1:]),
    )
    assert sorted(of_task(seen, sent[0].id)) == sorted(LIFE[1:])
    assert command(cell, single, "disable_events") == {"ok": "task events disabled"}
    seen = watch(cell, lambda: sent.append(cell.run("probes.add", 1, 2, queue="single")), lambda _: False, 1)
    assert not [event for event in seen if event["type"].startswith("task-") and event["hostname"] == single]
