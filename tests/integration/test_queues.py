"""Queues: where a task goes, in which order, how much a worker takes, and what becomes of what nobody takes."""

import time
from typing import Any

import pytest
from amqp.exceptions import PreconditionFailed
from celery import Celery
from celery.exceptions import NotRegistered
from kombu import Exchange
from kombu.utils.uuid import uuid

from tests.harness.combinations import COMBINATIONS
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.test_control import TYPED_QUEUES, command, consume, consumed, held, leave, node, running

#: Where kombu's own transport means the opposite.
OTHERWISE = [one for one in COMBINATIONS if one.broker.name == "redis"]


@pytest.fixture(autouse=True)
def single(cell: Cell) -> str:
    """The worker that runs one task at a time, consuming `single`."""
    return node(cell)


def waiting(app: Celery, queue: str) -> int:
    """Messages that wait in a queue. (Where a queue is a list, an empty one is not found.)"""
    with app.connection_for_read() as connection:
        channel: Any = connection.default_channel
        try:
            return int(channel.queue_declare(queue, passive=True).message_count)
        except connection.channel_errors:
            return 0


def declared(name: str, kind: str) -> dict[str, Any]:
    """Options of apply_async that send to an exchange. Where producers route themselves, each has to declare its type."""
    exchange = Exchange(name, kind)
    return {"exchange": exchange, "declare": [exchange]}


def noted(cell: Cell) -> list[str]:
    """What ran, in its order."""
    path = cell.running.data / cell.mark
    return path.read_text().split() if path.exists() else []


def test_queue_by_name(cell: Cell) -> None:
    """A task sent to a queue by its name runs on a worker that consumes it."""
    assert cell.run("queues_probes.where").startswith("main@")
    assert cell.run("queues_probes.where", queue="single") == node(cell)


def test_task_routes(cell: Cell) -> None:
    """task_routes send a task where its name belongs; apply_async(queue=) wins over them."""
    app = cell.running.app()
    app.conf.task_routes = {"queues_probes.wher*": {"queue": "single"}}
    assert app.send_task("queues_probes.where").get(timeout=WAIT) == node(cell)
    assert app.send_task("queues_probes.where", queue=app.conf.task_default_queue).get(timeout=WAIT).startswith("main@")
    app.close()


def test_several_queues(cell: Cell) -> None:
    """A worker with -Q a,b consumes both, and no other."""
    watched = node(cell, "watched")
    assert {cell.run("queues_probes.where", queue=queue) for queue in ("watched", "watched.too")} == {watched}
    assert {queue["name"] for queue in command(cell, watched, "active_queues")} == {"watched", "watched.too"}


def test_direct_exchange(cell: Cell) -> None:
    """A direct exchange hands a task to the queue whose key it has; a task with another key reaches nobody."""
    name = cell.mark
    consume(cell, name, exchange=f"{name}.exchange", exchange_type="direct", routing_key="red")
    wrong = cell.send("queues_probes.where", exchange=f"{name}.exchange", routing_key="blue")
    assert cell.run("queues_probes.where", exchange=f"{name}.exchange", routing_key="red") == node(cell)
    assert not wrong.ready()
    leave(cell, name)


def test_topic_exchange(cell: Cell) -> None:
    """A topic exchange hands a task to the queues whose wildcards match its key: * is a word, # any number of words."""
    name = cell.mark
    to = declared(name, "topic")
    consume(cell, f"{name}.mail", exchange=name, exchange_type="topic", routing_key="mail.*")
    consume(cell, f"{name}.urgent", "watched", exchange=name, exchange_type="topic", routing_key="#.urgent")
    assert cell.run("queues_probes.where", routing_key="mail.daily", **to) == node(cell)
    assert cell.run("queues_probes.where", routing_key="sms.to.all.urgent", **to) == node(cell, "watched")
    both = cell.send("queues_probes.note", name, "both", routing_key="mail.urgent", **to)
    both.get(timeout=WAIT)
    until("both queues got it", lambda: noted(cell) == ["both", "both"], 10)
    leave(cell, f"{name}.mail")
    leave(cell, f"{name}.urgent", "watched")


@pytest.mark.by_kit(OTHERWISE, "a higher number is more urgent, as on AMQP; plain kombu takes 0 first")
def test_priority(cell: Cell) -> None:
    """Of waiting tasks the one with the highest priority runs first, 0 to 9; without one it is the least urgent."""
    queue, sent = f"{cell.mark}.queue", [None, 0, 3, 4, 9, 5, 1, 8]
    results = [cell.send("queues_probes.note", cell.mark, str(priority), queue=queue, priority=priority) for priority in sent]
    consume(cell, queue)
    for result in results:
        result.get(timeout=WAIT)
    leave(cell, queue)
    cell.saw(noted(cell))
    if cell.limit:
        assert [one for one in noted(cell) if one in ("9", "5", "8")] == ["9", "5", "8"]
        assert [one for one in noted(cell) if one not in ("9", "5", "8")] == ["None", "0", "3", "4", "1"]
        assert noted(cell)[:2] == ["9", "5"]
    else:
        # Four levels, those of plain kombu: 9, 6 to 8, 3 to 5, the others; each in the order of sending.
        assert noted(cell) == ["9", "8", "3", "4", "5", "None", "0", "1"]


def test_priority_is_kept(cell: Cell) -> None:
    """A task is told the priority that it was sent with, and its retry has the same."""
    assert cell.run("queues_probes.priority", queue="single", priority=7) == 7
    assert cell.run("queues_probes.priority_of_retry", queue="single", priority=7) == 7


def test_prefetch(cell: Cell) -> None:
    """A busy worker takes no more than its slots; a second worker gets the rest."""
    # A task with an ETA gives its worker a place more, which the loop takes back at its next turn: here it has one.
    cell.run("queues_probes.where", queue="single")
    with held(cell, 3, start=1) as results:
        (mine,) = running(cell)
        until("the rest waits in the queue", lambda: waiting(cell.app, "single") == 2, 10)
        others = [cell.send("queues_probes.where", queue="single")]
        (cell.running.data / "nothing").touch()
        assert mine in {result.id for result in results} and not others[0].ready()
    for result in (*results, *others):
        result.get(timeout=WAIT)


def test_message_count(cell: Cell) -> None:
    """The broker tells how many tasks wait in a queue, whatever their priorities."""
    for priority in (None, 0, 5, 9):
        cell.send("probes.add", 1, 2, queue=cell.mark, priority=priority)
    until("four wait", lambda: waiting(cell.app, cell.mark) == 4, 10)


def test_purge(cell: Cell) -> None:
    """A queue is purged: its tasks never run, whatever their priorities."""
    app, queue = cell.running.operator(), f"{cell.mark}.queue"  # a producer may not purge
    for priority in (None, 0, 9):
        app.send_task("queues_probes.note", (cell.mark, "purged"), queue=queue, priority=priority)
    until("three wait", lambda: waiting(app, queue) == 3, 10)
    app.amqp.queues.select([queue])
    assert app.control.purge() == 3
    assert waiting(app, queue) == 0
    app.close()
    consume(cell, queue)
    cell.run("queues_probes.note", cell.mark, "later", queue=queue)
    leave(cell, queue)
    assert noted(cell) == ["later"]


def test_nobody_consumes(cell: Cell) -> None:
    """A task in a queue that nobody consumes waits, and runs once somebody does."""
    queue = f"{cell.mark}.queue"
    result = cell.send("queues_probes.where", queue=queue)
    assert cell.run("probes.add", 1, 2, queue="single") == 3
    assert result.state == "PENDING" and waiting(cell.app, queue) == 1
    consume(cell, queue)
    assert result.get(timeout=WAIT) == node(cell)
    leave(cell, queue)


@pytest.mark.by_kit(TYPED_QUEUES, "plain Celery makes other queues classic on a direct exchange, and workers hold the tasks")
def test_delay_on_other_queue(cell: Cell) -> None:
    """More delayed tasks than a worker has slots block nobody, in a queue that is not the default one either."""
    late = [cell.send("queues_probes.note", cell.mark, "late", queue="single", countdown=5) for _ in range(3)]
    cell.run("queues_probes.note", cell.mark, "at-once", queue="single")
    for result in late:
        result.get(timeout=WAIT)
    assert noted(cell) == ["at-once", "late", "late", "late"]


@pytest.mark.by_kit(TYPED_QUEUES, "plain Celery loses it: bound to nothing, it is dropped: fix delayed_queue")
def test_delay_before_its_worker(cell: Cell) -> None:
    """A delayed task for a queue that no worker has consumed yet waits there for its first worker, once its time has come."""
    queue = f"delayed-{uuid()}"
    # No producer may: the queues that delay the task are bound by who declares the queue.
    result = cell.running.operator().send_task("probes.add", (2, 3), queue=queue, countdown=1)
    sent = time.monotonic()
    until("its time has come", lambda: time.monotonic() > sent + 3)
    with consumed(cell, queue):
        assert result.get(timeout=WAIT) == 5


@pytest.mark.by_kit(TYPED_QUEUES, "task_create_missing_queue_type, which Celery leaves at classic")
def test_quorum_queues(cell: Cell) -> None:
    """Queues are quorum queues, the default one and all others: the broker refuses to take one for a classic queue."""
    for queue in (cell.app.conf.task_default_queue, "single"):
        with cell.app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            arguments = {**(cell.app.amqp.queues[queue].queue_arguments or {}), "x-queue-type": "classic"}
            declare = {"queue": queue, "durable": True, "auto_delete": False, "arguments": arguments}
            if cell.limit:
                channel.queue_declare(**declare)
            else:
                with pytest.raises(PreconditionFailed, match="quorum"):
                    channel.queue_declare(**declare)


def test_unknown_task(cell: Cell) -> None:
    """A task that the worker does not know fails for its sender; the message is gone from its queue, the worker goes on."""
    result = cell.send("nobody.knows.me", queue="single")
    with pytest.raises(NotRegistered, match=r"nobody\.knows\.me"):
        result.get(timeout=WAIT)
    assert cell.run("probes.add", 1, 2, queue="single") == 3
    assert waiting(cell.app, "single") == 0
