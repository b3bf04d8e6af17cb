"""Waiting for results: whoever has a result's object gets its value, from any thread, greenlet and process."""

from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import BY_RPC, SERVED, covering
from tests.compat.rig import KIT, SIDES, Side, kits, outcomes
from tests.harness.workers import PLAIN_CELERY

#: By how a wait ends without its result: what of cases/results.py does it, and the members of the group that is waited for.
GIVES_UP = {
    "timeout": ("timeout", 0),
    "no time": ("no_time", 0),
    "interrupt": ("interrupt", 0),
    "another thread": ("another_thread", 0),
    "iteration of a group": ("iteration", 3),
    "timeout of a group": ("timeout", 3),
    "no time of a group": ("no_time", 3),
}


#: Functions of cases/results.py, and what they are called with.
THREADS: dict[str, tuple[int, ...]] = {
    "sent_by_threads": (20, 50),
    "awaited_by_the_threads_that_send": (20, 50),
    "handed_to_another_thread": (10,),
}


@pytest.mark.parametrize(("served", "function"), covering(SERVED, THREADS), indirect=["served"])
def test_each_thread_gets_its_answers(served: dict[str, Side], function: str) -> None:
    """What belongs to one thread - a queue for replies, a consumer of them - is not given to another."""
    assert outcomes(served, f"results:{function}", *THREADS[function]) == {name: [] for name in SIDES}


@BY_RPC
def test_each_thread_gets_the_answers_of_what_it_spooled(served: dict[str, Side], tmp_path: Path) -> None:
    """What the spool's thread sends is answered to the thread that it sends for."""
    for name in KIT:
        assert served[name].client("results:spooled_by_threads", 3, 9, SPOOL=str(tmp_path / name)) == []


@pytest.mark.parametrize(("served", "patched"), covering(SERVED, ["gevent", "eventlet"]), indirect=["served"])
def test_the_first_result_wakes_its_greenlet(served: dict[str, Side], patched: str) -> None:
    """Whoever waits for results before there is anything to listen to is woken by the first one, not by a time limit."""
    found = outcomes(served, "results:first_on_greenlets", PATCHED=patched)
    assert {name: found[name] for name in KIT} == {name: [3] for name in KIT}


@pytest.mark.parametrize(("served", "gives_up"), covering(["redis", "rabbitmq-rpc"], GIVES_UP, turns=1), indirect=["served"])
def test_who_gives_up_leaves_nothing_behind(served: dict[str, Side], tmp_path: Path, gives_up: str) -> None:
    """A wait that ends without its result lets go of all that it has taken, and a later one takes it again:
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
    """What somebody else waits for, or is to be called for, is still listened for."""
    assert outcomes(kits(served), f"results:{function}", str(tmp_path)) == {name: [0] for name in KIT}


@pytest.mark.parametrize("served", ["rabbitmq", "rabbitmq-rpc"], indirect=True)
def test_who_waits_for_an_expired_task_hears_of_it(served: dict[str, Side]) -> None:
    """What the broker drops by itself has an end, too, where plain Celery's `get()` without a timeout never ends."""
    assert outcomes(served, "results:expired") == {
        PLAIN_CELERY: ["TimeoutError", "PENDING"],
        **{name: ["TaskRevokedError", "REVOKED"] for name in KIT},
    }


@pytest.mark.parametrize("served", ["rabbitmq"], indirect=True)
def test_a_chord_of_expired_tasks_ends(served: dict[str, Side]) -> None:
    """The same for who waits for it indirectly."""
    for ends, _ in outcomes(kits(served), "results:expired", 2).values():
        assert ends in ("TaskRevokedError", "ChordError")  # a member's, or its own


@pytest.mark.parametrize("served", ["rabbitmq"], indirect=True)
def test_many_that_expire_together(served: dict[str, Side]) -> None:
    """More of them than a worker holds at once are taken one after another, and tasks go on."""
    assert outcomes(kits(served), "results:many_expired", 60) == {name: [["REVOKED"], [2]] for name in KIT}
