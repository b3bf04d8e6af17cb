"""A worker that is told to end: what it has begun is done or handed back, and nothing is lost."""

from typing import Any

import pytest

from tests.faults.conftest import PAIRS, Stands
from tests.faults.stand import Pair, Stand
from tests.harness.waiting import until

LONG = 3.0  # seconds
#: Pools whose time limit does not end a call that waits.
UNLIMITED = [pair for pair in PAIRS if "hard_time_limit_of_a_waiting_call" in pair.pool.limits]
#: Pools on which a delivery is the task's run.
ONE_AT_A_TIME = [pair for pair in PAIRS if pair.at_once == 1]
#: No broker gives a message back for its age within a test: what comes back was handed back.
HOURS = "36000"

pairs = pytest.mark.parametrize("pair", PAIRS, ids=str)


def _busy(stand: Stand, number: int, seconds: float, task: str = "faults.effect", **environ: Any) -> Any:
    """Start a worker, and send it tasks; gives its container as soon as it works on as many as it can."""
    for name in list(stand.workers):
        stand.workers.pop(name).remove(force=True, v=True)
    stand.new_ledger()
    worker = stand.start("one", RESTORE_AFTER=HOURS, **environ)
    stand.wait_for("one")
    app = stand.app()
    for _ in range(number):
        stand.send(app, task, seconds)
    assert len(stand.ledger.accepted) == number
    until("the worker is busy", lambda: len(stand.ledger.begun()) >= min(number, stand.pair.at_once))
    return worker


def _done_by_another(stand: Stand) -> None:
    """Another worker does all that is left, and every result is there."""
    stand.start("two", RESTORE_AFTER=HOURS)
    until("nothing is lost", lambda: not stand.ledger.missing(), 90)
    until("every result is there", lambda: not stand.without_result(stand.ledger.accepted))


@pairs
def test_sigterm_in_the_middle_of_50_long_tasks(stands: Stands, pair: Pair) -> None:
    """It ends what it has begun, takes nothing new, and exits with 0; the others are done by the next worker, each once."""
    stand = stands(pair)
    worker = _busy(stand, 50, LONG if pair.at_once > 1 else LONG / 3)
    worker.stop(timeout=30)
    assert worker.wait()["StatusCode"] == 0
    assert stand.ledger.begun() == stand.ledger.done()
    _done_by_another(stand)
    assert stand.ledger.begun_again() == []


@pytest.mark.parametrize("pair", ONE_AT_A_TIME, ids=str)
def test_a_stop_begins_nothing_that_was_sent_ahead(stands: Stands, pair: Pair) -> None:
    """At SIGTERM it ends its one task, and leaves to the next worker what it has not begun."""
    stand = stands(pair)
    worker = _busy(stand, 6, 2 * LONG)
    begun = stand.ledger.begun()
    worker.stop(timeout=60)
    assert (worker.wait()["StatusCode"], stand.ledger.begun(), stand.ledger.done()) == (0, begun, begun)
    _done_by_another(stand)
    assert stand.ledger.begun_again() == []


@pytest.mark.parametrize("signals", (("SIGQUIT",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGQUIT")), ids="+".join)
@pairs
def test_cold_shutdown_hands_back(stands: Stands, pair: Pair, signals: tuple[str, ...]) -> None:
    """It exits with 0 and leaves its tasks: another worker does them at once, and none has failed or counts as done."""
    stand = stands(pair)
    worker = _busy(stand, 2 * pair.at_once, 12.0 if len(signals) > 1 else 8.0)
    for number, signal in enumerate(signals):
        if number:
            until("the first signal is heard", lambda: b"shutdown (MainProcess)" in worker.logs())
        worker.kill(signal=signal)
    code = worker.wait(timeout=60)["StatusCode"]
    assert stand.ledger.done() == set()
    stand.start("two", RESTORE_AFTER=HOURS)
    stand.wait_for("two")
    until("another worker has begun them", lambda: len(stand.ledger.begun_again()) == pair.at_once, 60)
    until("nothing is lost", lambda: not stand.ledger.missing(), 120)
    until("every result is there", lambda: not stand.without_result(stand.ledger.accepted))
    assert code == 0


@pairs
def test_soft_shutdown_ends_the_short_tasks(stands: Stands, pair: Pair) -> None:
    """With REMAP_SIGTERM=SIGQUIT and worker_soft_shutdown_timeout: what ends in that time is done, the rest is handed back."""
    stand = stands(pair)
    worker = _busy(stand, pair.at_once, LONG, REMAP_SIGTERM="SIGQUIT", SOFT_SHUTDOWN="30")
    worker.stop(timeout=60)
    assert worker.wait()["StatusCode"] == 0
    assert stand.ledger.missing() == set()
    worker = _busy(stand, pair.at_once, 15.0, REMAP_SIGTERM="SIGQUIT", SOFT_SHUTDOWN="2")
    worker.stop(timeout=60)
    assert (worker.wait()["StatusCode"], stand.ledger.done()) == (0, set())
    _done_by_another(stand)


@pytest.mark.parametrize("pair", UNLIMITED, ids=str)
def test_the_grace_ends(stands: Stands, pair: Pair) -> None:
    """SIGTERM, and a task that does not end within the grace: it is handed back before SIGKILL would come."""
    stand = stands(pair)
    worker = _busy(stand, pair.at_once, 40.0, "faults.wait", TASK_TIME_LIMIT="1")  # a grace of 31 s
    worker.stop(timeout=31)
    assert (worker.wait()["StatusCode"], stand.ledger.done()) == (0, set())
    _done_by_another(stand)
