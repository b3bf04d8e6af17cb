"""Messages of clients in other languages: the kit runs those that Celery runs, and dead-letters those that cannot be run."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import amqp
from kombu import Connection
from redis import Redis

from tests.compat.conftest import FULL
from tests.compat.messages import ANYWHERE, ASIDE, DROPPED, REDIS, RUNS, Shape, envelope, message
from tests.compat.rig import KIT, Place, Side, worker, workers
from tests.harness.waiting import until
from tests.harness.workers import PLAIN_CELERY

SECONDS = 30


def put(side: Side, shape: Shape) -> str:
    """Send a message of that shape without Celery. Returns the word that its task stores when it runs."""
    word = uuid4().hex
    parts = message(shape, side.queue, word)
    if side.place.name == "redis":
        Redis.from_url(side.place.broker).lpush(side.queue, envelope(parts))
        return word
    given = {name: parts["properties"].get(name) for name in ("correlation_id", "priority", "delivery_mode")}
    given |= {"content_type": parts["content-type"], "content_encoding": parts["content-encoding"]}
    properties = {name: value for name, value in given.items() if value is not None}
    made = amqp.Message(parts["raw"] or json.dumps(parts["task"]), application_headers=parts["headers"], **properties)
    with Connection(side.place.broker) as connection:
        channel: Any = connection.channel()
        channel.basic_publish(made, exchange="", routing_key=side.queue)
    return word


def ran(side: Side) -> set[str]:
    marks: Any = Redis.from_url(side.place.results).lrange("marks", 0, -1)
    return {word.decode() for word in marks}


def shapes(place: Place) -> list[Shape]:
    return [*ANYWHERE, *(REDIS if place.name == "redis" else [])]


def test_what_celery_runs_the_kit_runs_and_keeps_the_rest(place: Place) -> None:
    """Every message of another client runs or is dead-lettered. None is lost, and none stops the worker."""
    with workers(*(Side(name, place) for name in KIT), pool="solo") as started, ThreadPoolExecutor() as at_once:
        list(at_once.map(_runs_or_keeps, started.values()))


def _runs_or_keeps(side: Side) -> None:
    place = side.place
    words = {shape.what: put(side, shape) for shape in shapes(place)}
    expected = {words[shape.what] for shape in shapes(place) if shape.kit == RUNS}
    until("all have run that can", lambda: expected <= ran(side), SECONDS)
    assert {what for what, word in words.items() if word in ran(side)} == {
        shape.what for shape in shapes(place) if shape.kit == RUNS
    }
    kept = sum(shape.kit == ASIDE for shape in shapes(place))
    until("the others are dead letters", lambda: letters(side) == kept, SECONDS)
    assert side.alive


def letters(side: Side) -> int:
    """The number of dead letters from this side's queue."""
    with side.python("-m", "celery_kit.operate.look.dead", "--json") as process:
        out, _ = process.communicate(timeout=SECONDS)
    return sum(letter["queue"] == side.queue for letter in json.loads(out)["letters"])


def test_celery_runs_what_the_table_says(place: Place) -> None:
    """The table's column for plain Celery is right."""
    with worker(PLAIN_CELERY, place, "solo") as side:
        words = {put(side, shape) for shape in shapes(place) if shape.celery == RUNS}
        until("all have run", lambda: words <= ran(side), SECONDS)


#: Each of these messages stops or hangs a worker of plain Celery, which then has to restart: over a minute for each broker.
@FULL
def test_celery_runs_nothing_else(place: Place) -> None:
    """Celery never runs a message that it drops, however its worker ends."""
    waiting = [shape for shape in shapes(place) if shape.celery == DROPPED]
    while waiting:
        with worker(PLAIN_CELERY, place, "solo") as side:
            while waiting and side.alive:
                word, after = put(side, waiting.pop()), put(side, ANYWHERE[0])
                with suppress(AssertionError):  # it hangs
                    until("the next has run, or the worker has ended", partial(_over, side, after), 5)
                assert word not in ran(side)
                if after not in ran(side):
                    break


def _over(side: Side, after: str) -> bool:
    return after in ran(side) or not side.alive
