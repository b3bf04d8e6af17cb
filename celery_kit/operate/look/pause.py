"""Pause queues, or resume them: `python -m celery_kit.operate.look.pause pause|resume QUEUE …`, `make pause`, `make resume`.

The broker stores it, and the workers are asked to look. One that does not answer looks later by itself
(celery_kit/worker/pausing.py).
"""

import json
import os
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

from kombu.utils.imports import symbol_by_name

from celery_kit import brokers
from celery_kit.base.facts import PATIENCE, Server, address
from celery_kit.base.messages import plain
from celery_kit.base.refusals import choose, refuse
from celery_kit.base.types import Connection
from celery_kit.brokers.contract import Pauses
from celery_kit.observe.health import Progress
from celery_kit.operate.arguments import Parser, advice, next_look, standalone
from celery_kit.operate.target import app
from celery_kit.worker.pausing import EVERY

Word = Literal["pause", "resume"]


@dataclass(frozen=True)
class State:
    """What holds for a queue now. `changed`: by this command. `waiting`: its tasks that no worker has."""

    name: str
    paused: bool
    changed: bool
    waiting: int


@dataclass(frozen=True)
class Noticed:
    """A worker that has looked. `paused`: those of its queues that are. `held`: how many tasks it runs or has taken."""

    worker: str
    paused: list[str]
    held: int


@dataclass(frozen=True)
class Done:
    """What a command has done: the queues that it was about, and the workers that answered."""

    queues: list[State]
    workers: list[Noticed]


@contextmanager
def _broker() -> Iterator[tuple[Pauses, Connection, Server]]:
    """What notes the pauses, a connection to it, and facts about the broker. Refuses a broker that cannot pause a queue."""
    broker = brokers.room(app.conf.broker_write_url)
    if broker is None or broker.pauses is None or broker.facts is None:
        refuse("no queue of this broker can be paused: the kit has no module for the one that CELERY_BROKER_URL names")
    options = {"socket_timeout": 5 * PATIENCE, "socket_connect_timeout": 3 * PATIENCE, "max_retries": 0}
    with app.connection_for_write(connect_timeout=3 * PATIENCE, transport_options=options) as connection:
        errors: tuple[type[BaseException], ...] = (*connection.connection_errors, *connection.channel_errors, OSError)
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
            yield symbol_by_name(broker.pauses)(), connection, symbol_by_name(broker.facts)(app, connection, os.environ)
        except errors as error:
            if why := broker.explain and broker.explain(error):
                refuse(why)
            refuse(f"the broker at {address(app)} does not do that ({plain(str(error))}); {next_look()}")


def change(word: Word, queues: Sequence[str], known: Collection[str] = ()) -> Done:
    """Pause queues, or resume them. `known`: queues that are there, beside those that the app or the broker knows.

    Refuses (one line, exit code 2) a queue that nobody knows, and a broker that does not answer; nothing is changed then.
    """
    with _broker() as (pauses, connection, server):
        allowed = sorted({*(one.name for one in server.queues), *app.amqp.queues.consume_from, *known})
        for name in queues:
            choose("QUEUE", name, allowed)
            if not pauses.fits(name):
                refuse(f"QUEUE={name} is too long for this broker")
        before = pauses.paused(connection, queues)
        for name in queues:
            pauses.put(connection, name, word == "pause")
        answers = app.control.broadcast("pauses", reply=True, timeout=PATIENCE) or []
        after = pauses.paused(connection, queues)
        states = [
            State(name, name in after, (name in after) != (name in before), Progress.depth(connection, name))
            for name in dict.fromkeys(queues)
        ]
    reports = sorted((node, one) for answer in answers for node, one in answer.items())
    return Done(states, [Noticed(node, one["paused"], one["held"]) for node, one in reports if {"paused", "held"} <= {*one}])


def lines(word: Word, done: Done) -> Iterator[str]:
    """What was done, for a terminal."""
    resume = advice("make resume QUEUE=", "celery-kit resume ")
    for one in done.queues:
        already = "" if one.changed else " already"
        if one.paused != (word == "pause"):
            yield f"{one.name}: somebody else did the opposite at the same time, and that holds"
        if one.paused:
            yield f"{one.name} is paused{already}: {one.waiting} tasks wait, until '{resume}{one.name}'"
        else:
            yield f"{one.name} is consumed{already}: {one.waiting} tasks wait"
    if word == "pause":
        held = sum(one.held for one in done.workers)
        yield f"{len(done.workers)} workers have noticed; they go on with the {held} tasks that they hold"
    else:
        yield f"{len(done.workers)} workers have noticed"
    yield f"others notice within {EVERY:g} s, or after the task that they are busy with, or as they start"


def main() -> None:
    """Pause or resume what the command line names."""
    parser = Parser(description="Pause queues: no worker begins their tasks until they are resumed. Survives restarts.")
    if not standalone():
        parser.add_argument("word", choices=("pause", "resume"), metavar="pause|resume")
    parser.add_argument("queues", nargs="+", metavar="QUEUE")
    parser.add_argument("--known", default="", help="queues that are there, between commas, beside those that the broker knows")
    parser.add_argument("--json", action="store_true", help="one JSON object (docs/json.md)")
    given = parser.parse_args()
    word: Word = sys.argv[0].rpartition(" ")[2] if standalone() else given.word  # type: ignore[assignment]  # by script.py
    done = change(word, given.queues, [one for one in given.known.split(",") if one])
    if given.json:
        print(json.dumps(asdict(done)))
    else:
        print("\n".join(plain(line) for line in lines(word, done)))


if __name__ == "__main__":
    main()
