"""Queues of RabbitMQ that users configure or have already: the kit uses them as Celery does, or refuses them in one line."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from kombu import Connection, Exchange, Queue

from tests.compat.rig import KIT, SIDES, Place, Side, outcomes, worker
from tests.harness.waiting import until

SECONDS = 60


@pytest.fixture(scope="module")
def rabbitmq(places: Callable[[str], Place]) -> Place:
    return places("rabbitmq")


def declare(place: Place, *queues: Any) -> None:
    with Connection(place.broker) as connection:
        for queue in queues:
            queue(connection.channel()).declare()


def ends(side: Side, pool: str) -> tuple[int, list[str]]:
    """A worker's exit code, and its log line about it."""
    argv = ("-m", "celery", "-A", "tests.compat.side", "worker", "--pool", pool, "-Q", side.queue, "-l", "INFO", "-c", "2")
    with side.python(*argv, POOL=pool) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert "Traceback" not in out + err, err
    return process.returncode, [line for line in (out + err).splitlines() if "celery-kit: RabbitMQ" in line]


@pytest.mark.parametrize("pool", ["prefork", "gevent"])
@pytest.mark.parametrize("kind", ["classic queue", "direct exchange"])
def test_a_worker_says_in_one_line_which_queue_is_another(rabbitmq: Place, kind: str, pool: str) -> None:
    """The broker would refuse the queue at each attempt: the worker exits, and its message says what to configure."""
    side = Side("fast", rabbitmq)
    exchange = Exchange(side.queue, "topic" if kind == "classic queue" else "direct")
    declare(rabbitmq, Queue(side.queue, exchange, side.queue))
    code, (line,) = ends(side, pool)
    assert code == 2
    assert f"the {kind.split()[1]} {side.queue!r} is there already" in line and "task_queues" in line


@pytest.mark.parametrize("name", KIT)
def test_a_queue_that_a_worker_is_told_to_consume_does_not_end_it(rabbitmq: Place, name: str) -> None:
    """A queue that it cannot consume does not prevent it from consuming others."""
    with worker(name, rabbitmq, "threads") as side:
        other = f"{side.queue}-other"
        declare(rabbitmq, Queue(other, Exchange(other, "direct"), other))
        with side.python("-m", "celery", "-A", "tests.compat.side", "control", "add_consumer", other) as process:
            process.communicate(timeout=SECONDS)
        until("the worker has said so", lambda: f"{other} is not consumed" in side.said, 30)
        assert side.client("connections:sent") == [2, 3, 4, 5, 6, 7] and side.alive


def test_whoever_sends_to_a_queue_that_is_another_is_told_so(rabbitmq: Place) -> None:
    """The error is Celery's own. The kit adds a note to it, and the kit's command prints one line."""
    sides = {name: Side(name, rabbitmq) for name in SIDES}
    other = f"{sides['fast'].queue}-other"
    declare(rabbitmq, Queue(other, Exchange(other, "fanout"), other))
    gave = outcomes(sides, "connections:sent_to", other)
    assert {name: one["raised"] for name, one in gave.items()} == dict.fromkeys(SIDES, "PreconditionFailed")
    for name in KIT:
        (note,) = gave[name]["notes"]
        assert f"the exchange {other!r} is there already" in note
    command = ("-m", "tests.compat.cases.tools", "send", "compat.add", "[1, 2]")
    with sides["fast"].python(*command, QUEUE=other) as process:
        _, err = process.communicate(timeout=SECONDS)
    (line,) = err.splitlines()
    assert process.returncode == 2 and line.startswith("celery-kit: ") and f"the exchange {other!r} is there already" in line


@pytest.mark.parametrize("exchange", [None, "direct"])
def test_a_queue_that_the_user_lists_is_consumed(rabbitmq: Place, exchange: str | None) -> None:
    """Producers and workers agree on a queue in task_queues without a type, also if the user does not list it."""
    for name in SIDES:
        listed = f"listed-{Side(name, rabbitmq).queue}"
        kind = {"exchange": listed, "exchange_type": exchange, "routing_key": listed} if exchange else {}
        environ = {"SETTINGS": f'{{"task_queues": {{"{listed}": {str(kind).replace(chr(39), chr(34))}}}}}'}
        side = Side(name, rabbitmq, environ, queue=listed)
        try:
            side.start("threads")
            assert side.client("connections:sent_to", listed) == 8
        finally:
            side.stop()
