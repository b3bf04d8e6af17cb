"""Waiting for results: a result object gives its value in any thread, greenlet and process."""

from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import BY_RPC, SERVED, covering
from tests.compat.rig import KIT, SIDES, Side, kits, outcomes
from tests.harness.workers import PLAIN_CELERY

#: By how a wait ends without its result: the function of cases/results.py, and the number of members of the awaited group.
GIVES_UP = {
    "timeout": ("timeout", 0),
    "no time": ("no_time", 0),
    "interrupt": ("interrupt", 0),
    "another thread": ("another_thread", 0),
    "iteration of a group": ("iteration", 3),
    "timeout of a group": ("timeout", 3),
    "no time of a group": ("no_time", 3),
}


#: Functions of cases/results.py, and their arguments.
THREADS: dict[str, tuple[int, ...]] = {
    "sent_by_threads": (20, 50),
    "awaited_by_the_threads_that_send": (20, 50),
    "handed_to_another_thread": (10,),
}


@pytest.mark.parametrize(("served", "function"), covering(SERVED, THREADS), indirect=["served"], scope="session")
def test_each_thread_gets_its_answers(served: dict[str, Side], function: str) -> None:
    """The objects of one thread - a queue for replies, its consumer - are not used by another."""
    assert outcomes(served, f"results:{function}", *THREADS[function]) == {name: [] for name in SIDES}


@BY_RPC
def test_each_thread_gets_the_answers_of_what_it_spooled(served: dict[str, Side], tmp_path: Path) -> None:
    """The result of a task that the spool's thread sends reaches the thread that spooled it."""
    for name in KIT:
        assert served[name].client("results:spooled_by_threads", 3, 9, SPOOL=str(tmp_path / name)) == []


@pytest.mark.parametrize(("served", "patched"), covering(SERVED, ["gevent", "eventlet"]), indirect=["served"], scope="session")
def test_the_first_result_wakes_its_greenlet(served: dict[str, Side], patched: str) -> None:
    """A wait that begins before there is a subscription is woken by the first result, not by a timeout."""
    found = outcomes(served, "results:first_on_greenlets", PATCHED=patched)
    assert {name: found[name] for name in KIT} == {name: [3] for name in KIT}


@pytest.mark.parametrize(
    ("served", "gives_up"), covering(["redis", "rabbitmq-rpc"], GIVES_UP, turns=1), indirect=["served"], scope="session"
)
def test_who_gives_up_leaves_nothing_behind(served: dict[str, Side], tmp_path: Path, gives_up: str) -> None:
    """A wait that ends without its result releases all of its resources, and a later wait can use them:
    fix abandoned_waits.
    """
    how, members = GIVES_UP[gives_up]
    value: Any = list(range(members)) if members else 0
    found = outcomes(served, "results:gives_up", str(tmp_path), how, members)
    assert {name: found[name] for name in KIT} == {name: {"left": 0, "value": value, "then": 0} for name in KIT}
    assert found[PLAIN_CELERY]["left"] and found[PLAIN_CELERY]["value"] == value


@pytest.mark.parametrize("function", ["gives_up_beside_another", "gives_up_what_is_to_be_called"])
@pytest.mark.parametrize("served", ["redis", "rabbitmq-rpc"], indirect=True)
def test_who_gives_up_takes_nothing_from_others(served: dict[str, Side], tmp_path: Path, function: str) -> None:
    """The subscription stays if there is another wait or a callback for the result."""
    assert outcomes(kits(served), f"results:{function}", str(tmp_path)) == {name: [0] for name in KIT}


@pytest.mark.parametrize("served", ["rabbitmq", "rabbitmq-rpc"], indirect=True)
def test_who_waits_for_an_expired_task_hears_of_it(served: dict[str, Side]) -> None:
    """A message that the broker drops gives a result. With plain Celery, `get()` without a timeout never returns."""
    assert outcomes(served, "results:expired") == {
        PLAIN_CELERY: ["TimeoutError", "PENDING"],
        **{name: ["TaskRevokedError", "REVOKED"] for name in KIT},
    }


@pytest.mark.parametrize("served", ["rabbitmq"], indirect=True)
def test_a_chord_of_expired_tasks_ends(served: dict[str, Side]) -> None:
    """The same for an indirect wait."""
    for ends, _ in outcomes(kits(served), "results:expired", 2).values():
        assert ends in ("TaskRevokedError", "ChordError")  # the error of a member, or of the chord itself


@pytest.mark.parametrize("served", ["rabbitmq"], indirect=True)
def test_many_that_expire_together(served: dict[str, Side]) -> None:
    """More expired tasks than a worker can prefetch are processed one after another, and later tasks run."""
    assert outcomes(kits(served), "results:many_expired", 60) == {name: [["REVOKED"], [2]] for name in KIT}
