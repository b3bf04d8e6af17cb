"""Waiting for results: whoever has a result's object gets its value, from any thread, greenlet and process."""

from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import BY_RPC, EVERYWHERE
from tests.compat.rig import KIT, SIDES, Side, outcomes
from tests.harness.workers import PLAIN_CELERY

GREEN = pytest.mark.parametrize("patched", ["gevent", "eventlet"])


@EVERYWHERE
@pytest.mark.parametrize(
    ("function", "arguments"),
    [("sent_by_threads", (20, 50)), ("awaited_by_the_threads_that_send", (20, 50)), ("handed_to_another_thread", (10,))],
)
def test_each_thread_gets_its_answers(served: dict[str, Side], function: str, arguments: tuple[Any, ...]) -> None:
    """What belongs to one thread - a queue for replies, a consumer of them - is not given to another."""
    assert outcomes(served, f"results:{function}", *arguments) == {name: [] for name in SIDES}


@BY_RPC
def test_each_thread_gets_the_answers_of_what_it_spooled(served: dict[str, Side], tmp_path: Path) -> None:
    """What the spool's thread sends is answered to the thread that it sends for."""
    for name in KIT:
        assert served[name].client("results:spooled_by_threads", 3, 9, SPOOL=str(tmp_path / name)) == []


@EVERYWHERE
@GREEN
def test_the_first_result_wakes_its_greenlet(served: dict[str, Side], patched: str) -> None:
    """Whoever waits for results before there is anything to listen to is woken by the first one, not by a time limit."""
    found = outcomes(served, "results:first_on_greenlets", PATCHED=patched)
    assert {name: found[name] for name in KIT} == {name: [3] for name in KIT}


@pytest.mark.parametrize(
    ("how", "members"),
    [("timeout", 0), ("no_time", 0), ("interrupt", 0), ("another_thread", 0), ("iteration", 3), ("timeout", 3), ("no_time", 3)],
)
@pytest.mark.parametrize("served", ["redis", "rabbitmq-rpc"], indirect=True)
def test_who_gives_up_leaves_nothing_behind(served: dict[str, Side], tmp_path: Path, how: str, members: int) -> None:
    """A wait that ends without its result lets go of all that it has taken, and a later one takes it again."""
    value: Any = list(range(members)) if members else 0
    found = {name: side.client("results:gives_up", str(tmp_path / name), how, members) for name, side in served.items()}
    assert {name: found[name] for name in KIT} == {name: {"left": 0, "value": value, "then": 0} for name in KIT}
    assert found[PLAIN_CELERY]["left"] and found[PLAIN_CELERY]["value"] == value


@pytest.mark.parametrize("function", ["gives_up_beside_another", "gives_up_what_is_to_be_called"])
@pytest.mark.parametrize("served", ["redis", "rabbitmq-rpc"], indirect=True)
def test_who_gives_up_takes_nothing_from_others(served: dict[str, Side], tmp_path: Path, function: str) -> None:
    """What somebody else waits for, or is to be called for, is still listened for."""
    for name in KIT:
        assert served[name].client(f"results:{function}", str(tmp_path / name)) == [0]


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
    for name in KIT:
        assert served[name].client("results:expired", 2)[0] in ("TaskRevokedError", "ChordError")  # a member's, or its own


@pytest.mark.parametrize("served", ["rabbitmq"], indirect=True)
def test_many_that_expire_together(served: dict[str, Side]) -> None:
    """More of them than a worker holds at once are taken one after another, and tasks go on."""
    for name in KIT:
        assert served[name].client("results:many_expired", 60) == [["REVOKED"], [2]]
