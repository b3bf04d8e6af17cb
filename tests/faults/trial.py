"""One trial: a fault on a setup under load, and the check of the ledger afterwards."""

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.faults.setup import Setup
from tests.faults.table import Fault
from tests.harness.waiting import until

#: Tasks that are accepted and not done when the fault begins, and the seconds that two workers need for them.
TASKS = 600
DRAIN = 10.0
#: Further tasks/s that are sent, from before the fault until the check.
STEADY = 20
#: Seconds until each worker has begun a task again.
FLOW = 90.0


@dataclass
class Outcome:
    """The outcome of a trial. Counts are numbers of tasks.

    `in_flight`: accepted and not done when the fault began. `refused`: sends that raised. `lost`: accepted and never done.
    `repeated`: done more than once. `repeated_once`: the same for the tasks with `@once`, which every second one has.
    `cut_off`: begun more than once, so that one run may have been interrupted. `no_result`: done, without the state SUCCESS at
    the end. `flowing`: seconds from the fault's end until every running worker had begun a task; None: not within the deadline.
    `alive`: running workers at the end. `restarts`: workers that had exited by themselves and were restarted by the engine.
    `exits`: exit codes of the workers that the fault stopped. `last_words`: the last log lines, if a worker exited with a code
    other than 0, or if tasks were lost.
    """

    fault: str
    broker: str
    pool: str
    engine: str
    in_flight: int = 0
    accepted: int = 0
    refused: int = 0
    lost: int = 0
    repeated: int = 0
    repeated_once: int = 0
    cut_off: int = 0
    no_result: int = 0
    flowing: float | None = None
    alive: int = 0
    restarts: int = 0
    exits: list[int] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""
    last_words: str = ""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def trial(setup: Setup, fault: Fault) -> Outcome:
    """Run a trial. An exception is recorded in the outcome's `error`, never raised."""
    outcome = Outcome(fault.name, setup.pair.broker, setup.pair.pool.name, setup.engine)
    began = time.monotonic()
    try:
        _run(setup, fault, outcome)
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"[:2000]
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _run(setup: Setup, fault: Fault, outcome: Outcome) -> None:
    setup.ensure(fault.linked, fault.clock)
    setup.new_ledger()
    ledger, restarts = setup.ledger, setup.restarts()
    seconds = DRAIN * 2 * setup.pair.at_once / TASKS
    app = setup.app()
    with setup.paused():  # all are in flight at once, however slow the producer is
        while len(ledger.accepted) < TASKS and ledger.refused < TASKS:
            setup.send_effect(app, seconds)
    with setup.load(seconds, STEADY):
        outcome.in_flight = len(ledger.missing())
        with fault.happens(setup):
            time.sleep(fault.seconds)  # how long the fault lasts
        ended = time.monotonic()
        nodes = {f"{name}@worker" for name in setup.workers}

        def flows() -> bool:
            return set(ledger.first_after(ended, nodes)) >= {f"{name}@worker" for name in setup.running()} != set()

        with suppress(AssertionError):
            until("each worker works again", flows, FLOW)
            outcome.flowing = round(max(ledger.first_after(ended, nodes).values()), 1)
    _settle(setup, setup.server.faults.quiet)
    missing = ledger.missing()
    outcome.accepted, outcome.refused, outcome.lost = len(ledger.accepted), ledger.refused, len(missing)
    outcome.repeated, outcome.repeated_once = len(ledger.repeated()), len(ledger.repeated("once"))
    outcome.cut_off = len(ledger.begun_again())
    with suppress(AssertionError):  # a result is stored after its task's last line
        until("every result is there", lambda: not setup.without_result(ledger.accepted - missing), 20)
    outcome.no_result = len(setup.without_result(ledger.accepted - missing))
    outcome.alive, outcome.restarts = len(setup.running()), setup.restarts() - restarts
    outcome.exits, setup.exits = setup.exits, []
    outcome.last_words, setup.last_words = setup.last_words, ""
    if missing:
        outcome.last_words += setup.words()


def _settle(setup: Setup, quiet: float) -> None:
    """Wait until every accepted task is done, or until no task was done for `quiet` seconds."""
    ledger = setup.ledger
    last = [len(ledger.lines()), time.monotonic()]

    def settled() -> bool:
        if not ledger.missing():
            return True
        if len(ledger.lines()) != last[0]:
            last[:] = [len(ledger.lines()), time.monotonic()]
        return time.monotonic() - last[1] > quiet

    until("the accounts are settled", settled, 300)
    # A task that was delivered twice may still run a second time.
    with suppress(AssertionError):
        until("nothing runs any more", lambda: not ledger.under_way(), 10)
