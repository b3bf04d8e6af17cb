"""The shutdown of a worker: tasks that it has begun are done or requeued, and none is lost: fixes cold_shutdown, solo_stop."""

from typing import Any

import pytest

from tests.faults.conftest import PAIRS, Setups
from tests.faults.setup import Pair, Setup
from tests.harness.waiting import until

LONG = 3.0  # seconds
#: Pools whose time limit does not interrupt a blocking call.
UNLIMITED = [pair for pair in PAIRS if "hard_time_limit_of_a_waiting_call" in pair.pool.limits]
#: Pools on which a task runs when it is delivered.
ONE_AT_A_TIME = [pair for pair in PAIRS if pair.at_once == 1]
#: Longer than a test: messages that are redelivered were requeued by the worker, not restored by the broker.
AN_HOUR = "3600"

pairs = pytest.mark.parametrize("pair", PAIRS, ids=str)


def _busy(setup: Setup, number: int, seconds: float, task: str = "faults.effect", **environ: Any) -> Any:
    """Start a worker, and send it tasks. Returns its container when it runs as many as it can."""
    for name in list(setup.workers):
        setup.workers.pop(name).remove(force=True, v=True)
    setup.new_ledger()
    worker = setup.start("one", WORKER_LEASE=AN_HOUR, **environ)
    setup.wait_for("one")
    app = setup.app()
    for _ in range(number):
        setup.send(app, task, seconds)
    assert len(setup.ledger.accepted) == number
    until("the worker is busy", lambda: len(setup.ledger.begun()) >= min(number, setup.pair.at_once))
    return worker


def _done_by_another(setup: Setup) -> None:
    """Another worker does all remaining tasks, and every result is stored."""
    setup.start("two", WORKER_LEASE=AN_HOUR)
    until("nothing is lost", lambda: not setup.ledger.missing(), 90)
    until("every result is there", lambda: not setup.without_result(setup.ledger.accepted))


@pairs
def test_sigterm_in_the_middle_of_50_long_tasks(setups: Setups, pair: Pair) -> None:
    """It finishes the tasks that it has begun, and exits with 0. The next worker does the others, each once."""
    setup = setups(pair)
    worker = _busy(setup, 50, LONG if pair.at_once > 1 else LONG / 3)
    worker.stop(timeout=30)
    assert worker.wait()["StatusCode"] == 0
    assert setup.ledger.begun() == setup.ledger.done()
    _done_by_another(setup)
    assert setup.ledger.begun_again() == []


@pytest.mark.parametrize("pair", ONE_AT_A_TIME, ids=str)
def test_a_stop_begins_nothing_that_was_sent_ahead(setups: Setups, pair: Pair) -> None:
    """At SIGTERM it finishes its one task, and leaves the prefetched ones to the next worker."""
    setup = setups(pair)
    worker = _busy(setup, 6, 2 * LONG)
    begun = setup.ledger.begun()
    worker.stop(timeout=60)
    assert (worker.wait()["StatusCode"], setup.ledger.begun(), setup.ledger.done()) == (0, begun, begun)
    _done_by_another(setup)
    assert setup.ledger.begun_again() == []


@pytest.mark.parametrize("signals", (("SIGQUIT",), ("SIGINT", "SIGINT"), ("SIGTERM", "SIGQUIT")), ids="+".join)
@pairs
def test_cold_shutdown_hands_back(setups: Setups, pair: Pair, signals: tuple[str, ...]) -> None:
    """It exits with 0 and requeues its tasks. Another worker does them at once, and none has failed or counts as done."""
    setup = setups(pair)
    worker = _busy(setup, 2 * pair.at_once, 12.0 if len(signals) > 1 else 8.0)
    for number, signal in enumerate(signals):
        if number:
            until("the first signal is heard", lambda: b"shutdown (MainProcess)" in worker.logs())
        worker.kill(signal=signal)
    code = worker.wait(timeout=60)["StatusCode"]
    assert setup.ledger.done() == set()
    setup.start("two", WORKER_LEASE=AN_HOUR)
    setup.wait_for("two")
    until("another worker has begun them", lambda: len(setup.ledger.begun_again()) == pair.at_once, 60)
    until("nothing is lost", lambda: not setup.ledger.missing(), 120)
    until("every result is there", lambda: not setup.without_result(setup.ledger.accepted))
    assert code == 0


@pairs
def test_soft_shutdown_ends_the_short_tasks(setups: Setups, pair: Pair) -> None:
    """With REMAP_SIGTERM=SIGQUIT and worker_soft_shutdown_timeout: tasks that end in time are done, others are requeued."""
    setup = setups(pair)
    worker = _busy(setup, pair.at_once, LONG, REMAP_SIGTERM="SIGQUIT", SOFT_SHUTDOWN="30")
    worker.stop(timeout=60)
    assert worker.wait()["StatusCode"] == 0
    assert setup.ledger.missing() == set()
    worker = _busy(setup, pair.at_once, 15.0, REMAP_SIGTERM="SIGQUIT", SOFT_SHUTDOWN="2")
    worker.stop(timeout=60)
    assert (worker.wait()["StatusCode"], setup.ledger.done()) == (0, set())
    _done_by_another(setup)


@pytest.mark.parametrize("pair", UNLIMITED, ids=str)
def test_the_grace_ends(setups: Setups, pair: Pair) -> None:
    """A task that does not end within the grace after SIGTERM is requeued before SIGKILL would be sent."""
    setup = setups(pair)
    worker = _busy(setup, pair.at_once, 40.0, "faults.wait", TASK_TIME_LIMIT="1")  # a grace of 31 s
    worker.stop(timeout=31)
    assert (worker.wait()["StatusCode"], setup.ledger.done()) == (0, set())
    _done_by_another(setup)
