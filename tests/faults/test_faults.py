"""Every fault on every broker and pool, under load: no accepted task is lost, and the workers go on by themselves."""

import os

import pytest

from tests.faults import report
from tests.faults.conftest import PAIRS, Setups
from tests.faults.setup import Pair
from tests.faults.table import FAULTS, Fault
from tests.faults.trial import trial

TRIALS = [(pair, fault) for fault in FAULTS for pair in PAIRS if fault.fits(pair.broker, pair.pool.name)]


def some() -> list[tuple[Pair, Fault]]:
    """Each fault on two of its pairs, if possible one of each broker. They rotate with the position in the table."""
    chosen = []
    for place, fault in enumerate(FAULTS):
        for broker in dict.fromkeys(pair.broker for pair in PAIRS):
            fitting = [pair for pair in PAIRS if pair.broker == broker and fault.fits(pair.broker, pair.pool.name)]
            chosen += [(fitting[(place + (broker == PAIRS[0].broker) * 2) % len(fitting)], fault)] if fitting else []
    return chosen


@pytest.mark.parametrize(
    ("pair", "fault"),
    [pytest.param(*one, id=f"{one[0]}-{one[1].name}") for one in (some() if os.environ.get("QUICK") else TRIALS)],
)
def test_fault(setups: Setups, pair: Pair, fault: Fault) -> None:
    """Every accepted task is done, twice only if at-least-once delivery explains it, and every running worker works again.

    `broker_frozen` on Redis and solo: fix failed_ack.
    """
    outcome = trial(setups(pair), fault)
    report.note(outcome)
    if outcome.error or outcome.lost or outcome.flowing is None:
        setups.close()  # what it left would affect the next trial
    assert (outcome.error, outcome.lost) == ("", 0), outcome.last_words
    assert outcome.flowing is not None, outcome.last_words
    assert outcome.in_flight >= report.IN_FLIGHT
    assert fault.repeats or not outcome.repeated
    assert outcome.repeated_once == 0
    assert set(outcome.exits) <= {0}, outcome.last_words
