"""Dead letters: a message that cannot be run is kept with its reason, can be requeued, and is never dropped."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery.exceptions import Reject, WorkerLostError
from kombu.utils.uuid import uuid

from celery_kit.brokers.contract import DeadLetter
from celery_kit.operate.look.dead import letters
from tests.harness.combinations import COMBINATIONS
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import Worker
from tests.integration.test_control import consumed

#: As few as show it: on most pools every one of them ends a worker.
TRIES = 2
KEPT = "plain Celery drops it, and on some bodies the worker ends: celery_kit/worker/dead_lettering.py"


def dead(cell: Cell, queue: str) -> list[DeadLetter]:
    """The dead letters of one queue."""
    return [letter for letter in letters(cell.app) if letter.queue == queue]


class Restarted:
    """A worker that is started anew whenever a task ended it, as an engine's restart policy does."""

    def __init__(self, cell: Cell, queue: str) -> None:
        self.cell, self.environ = cell, {"OPTIONS": f"-Q {queue} -c 1", "MAX_DELIVERIES": str(TRIES)}
        self.worker: Worker | None = None

    def until(self, done: Callable[[], Any]) -> None:
        """Have it consume until then."""

        def done_or_again() -> Any:
            if not self.worker or not self.worker.runs(0):
                self._remove()
                self.cell.running.server.restore(self.cell.app)
                self.worker = self.cell.running.start("dead", **self.environ)
            return done()

        until("its worker outlived it", done_or_again, 2 * WAIT, 0.25)  # it asks the engine each time

    def _remove(self) -> None:
        if self.worker:
            self.worker.docker.remove(force=True, v=True)
            del self.cell.running.workers["dead"]

    def __enter__(self) -> "Restarted":
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()


@pytest.mark.by_kit(
    COMBINATIONS, "a task that kills its process is tried a bounded number of times: celery_kit/worker/dead_lettering.py"
)
def test_poison_is_set_aside(cell: Cell) -> None:
    """A task that kills its process each time is dead-lettered after so many tries; its result says so; requeued it runs."""
    name = queue = f"poison-{uuid()}"
    result = cell.send("dead_probes.kills_until_cured", name, queue=queue)
    with Restarted(cell, queue) as worker:
        worker.until(lambda: dead(cell, queue))
        assert len((cell.running.data / name).read_text()) == TRIES
        (letter,) = dead(cell, queue)
        assert (letter.id, letter.task, letter.deliveries) == (result.id, "dead_probes.kills_until_cured", TRIES + 1)
        assert letter.reason == f"delivered {TRIES} times, and no worker lived to end it"
        if cell.combination.backend.read_elsewhere:
            error = result.get(timeout=WAIT, propagate=False)
            assert isinstance(error, WorkerLostError) and "dead-lettered" in str(error)
        (cell.running.data / f"{name}.cured").touch()
        sent = cell.running.python("celery_kit.operate.look.dead", f"--retry={result.id}")
        assert sent.stdout.splitlines()[-1] == "1 sent back", sent
        worker.until(lambda: len((cell.running.data / name).read_text()) == TRIES + 1)
    assert not dead(cell, queue)
    cell.saw(f"{TRIES} tries, then: {letter.reason}")


def _header(**more: Any) -> dict[str, Any]:
    return {"id": uuid(), "task": "probes.add", "lang": "py", "argsrepr": "", "kwargsrepr": ""} | more


_BODY = json.dumps([[1, 2], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()
_JSON, _PICKLE = "application/json", "application/x-python-serialize"

#: Body, content type, headers.
MALFORMED: dict[str, tuple[bytes, str, dict[str, Any]]] = {
    "no JSON": (b"{{{", _JSON, _header()),
    "empty": (b"", _JSON, _header()),
    "no UTF-8": (b"\xff\xfe[]", _JSON, _header()),
    "a number": (b"5", _JSON, _header()),
    "null": (b"null", _JSON, _header()),
    "a string": (b'"text"', _JSON, _header()),
    "nested too deep": (b"[" * 100_000 + b"]" * 100_000, _JSON, _header()),
    "pickle": (b"\x80\x04N.", _PICKLE, _header()),
    "yaml": (b"- 1", "application/x-yaml", _header()),
    "unknown content type": (b"x", "application/x-nothing", _header()),
    "not compressed": (b"xxxx", _JSON, _header(compression="application/x-gzip")),
    "unknown compression": (_BODY, _JSON, _header(compression="application/x-nothing")),
    "unknown task": (_BODY, _JSON, _header(task="no.such")),
    "a list as the task": (_BODY, _JSON, _header(task=["a"])),
    "no id": (_BODY, _JSON, {"task": "probes.add"}),
    "a table as the id": (_BODY, _JSON, _header(id={"a": 1})),
    "no headers": (b'{"a": 1}', _JSON, {}),
    "a body of two": (b"[[], {}]", _JSON, _header()),
    "a body of numbers": (b"[5, 6, 7]", _JSON, _header()),
    "an ETA of words": (_BODY, _JSON, _header(eta="yesterday")),
    "an expiry of words": (_BODY, _JSON, _header(expires="soonish")),
    "a time limit of words": (_BODY, _JSON, _header(timelimit="x")),
    "protocol 1, no task": (b'{"id": "1", "args": []}', _JSON, {}),
    "protocol 1, unknown task": (b'{"id": "1", "task": "no.such", "args": []}', _JSON, {}),
}


@pytest.mark.by_kit(COMBINATIONS, KEPT)
def test_malformed_messages_are_set_aside(cell: Cell) -> None:
    """24 sorts of malformed messages, and items that are none, are dead-lettered, each with its reason; the worker goes on."""
    queue = f"malformed-{uuid()}"
    with consumed(cell, queue), cell.running.operator().producer_or_acquire() as producer:
        for body, content_type, headers in MALFORMED.values():
            producer.publish(body, content_type=content_type, headers=headers, exchange="", routing_key=queue)
        expected = len(MALFORMED) + cell.running.server.put_raw(cell.app, queue)
        assert cell.run("probes.add", 1, 2, queue=queue) == 3
        until("all are dead letters", lambda: len(dead(cell, queue)) == expected, WAIT)
        assert all(letter.reason and letter.deliveries == 1 for letter in dead(cell, queue))
        assert cell.run("probes.add", 1, 3, queue=queue) == 4
    dropped = cell.running.python("celery_kit.operate.look.dead", "--drop=all")
    assert dropped.returncode == 0 and not dead(cell, queue)
    cell.saw(f"{expected} sorts")


@pytest.mark.by_kit(COMBINATIONS, KEPT)
def test_rejected_message_is_set_aside(cell: Cell) -> None:
    """A message that a task rejects without requeue is dead-lettered; requeued, it runs again."""
    queue, name = f"rejected-{uuid()}", f"rejected-{uuid()}"
    with consumed(cell, queue):
        result = cell.send("retry_probes.rejects", name, False, queue=queue)
        if not cell.combination.limit("reject"):
            assert isinstance(result.get(timeout=WAIT, propagate=False), Reject)
        letter = until("it is a dead letter", lambda: dead(cell, queue), WAIT)[0]
        assert (letter.task, letter.reason) == ("retry_probes.rejects", "rejected by its task, without requeue")
        assert cell.running.python("celery_kit.operate.look.dead", f"--retry={result.id}").returncode == 0
        until("it ran again", lambda: len((cell.running.data / name).read_text().split()) == 2, WAIT)
        assert not dead(cell, queue)


@pytest.mark.by_kit(COMBINATIONS, "Celery acknowledges a failed task, and its arguments are gone: celery_kit/worker/failed.py")
def test_failed_task_is_kept(cell: Cell) -> None:
    """A task that fails for good is kept whole, with its exception; sent back once its cause is gone, it keeps its id."""
    queue, name = f"failed-{uuid()}", f"failed-{uuid()}"
    with consumed(cell, queue):
        results = [cell.send("dead_probes.fails_until_cured", name, number, queue=queue) for number in range(2)]
        for one in results:
            assert isinstance(one.get(timeout=WAIT, propagate=False), ValueError)
        until("both are kept", lambda: len(dead(cell, queue)) == 2, WAIT)
        found = dead(cell, queue)
        said = {one.id: (one.kind, one.task, one.reason) for one in found}
        assert said == {
            one.id: ("failed", "dead_probes.fails_until_cured", f"ValueError: number {number}")
            for number, one in enumerate(results)
        }
        assert all("fails_until_cured" in one.traceback and one.worker and one.attempts == 1 for one in found)
        (cell.running.data / f"{name}.cured").touch()
        sent = cell.running.python("celery_kit.operate.look.dead", "--retry=all", "--reason=number 1")
        assert sent.returncode == 0 and "1 sent back" in sent.stdout, sent
        runs = [f"{one.id} {number}" for number, one in enumerate(results)]
        until(
            "it ran again",
            lambda: sorted((cell.running.data / name).read_text().splitlines()) == sorted([*runs, runs[1]]),
            WAIT,
        )
        assert [one.id for one in until("the other is left", lambda: dead(cell, queue), WAIT)] == [results[0].id]
    cell.saw("the filter sent back its own, under the same id")


def test_expired_task_is_no_dead_letter(cell: Cell) -> None:
    """A task that expires before a worker takes it is no dead letter: its sender wished that. Nor is one that was delayed."""
    queue = f"expired-{uuid()}"
    cell.send("probes.add", 1, 1, queue=queue, expires=0.2)
    sent = time.monotonic()
    until("it has expired", lambda: time.monotonic() > sent + 0.5)
    with consumed(cell, queue):
        assert cell.run("probes.add", 1, 4, queue=queue, countdown=1) == 5
        assert not dead(cell, queue)
