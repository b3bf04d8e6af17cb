"""Waiting for results: whoever has a result's object gets its value, from any thread, greenlet and process."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import outcomes
from tests.compat.rig import KIT, SIDES, Place, Side
from tests.matrix import SERVERS


@pytest.fixture(scope="module", params=list(SERVERS))
def by_rpc(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side whose results are messages."""
    place = replace(places(request.param), results="rpc://")
    started: dict[str, Side] = {}
    try:
        for name in SIDES:
            started[name] = Side(name, place).start("threads")
        yield started
    finally:
        for side in started.values():
            side.stop()


THREADS: list[tuple[str, tuple[Any, ...]]] = [
    ("sent_by_threads", (20, 50)),
    ("awaited_by_the_threads_that_send", (20, 50)),
    ("handed_to_another_thread", (10,)),
]


@pytest.mark.parametrize(("function", "arguments"), THREADS, ids=[name for name, _ in THREADS])
def test_each_thread_gets_its_answers_by_rpc(by_rpc: dict[str, Side], function: str, arguments: tuple[Any, ...]) -> None:
    """What belongs to one thread - a queue for replies, a consumer of them - is not given to another."""
    assert outcomes(by_rpc, f"results:{function}", *arguments) == {name: [] for name in SIDES}


def test_each_thread_gets_the_answers_of_what_it_spooled(by_rpc: dict[str, Side], tmp_path: Path) -> None:
    """What the spool's thread sends is answered to the thread that it sends for."""
    for name in KIT:
        assert by_rpc[name].client("results:spooled_by_threads", 3, 9, SPOOL=str(tmp_path / name)) == []


@pytest.mark.parametrize(("function", "arguments"), THREADS, ids=[name for name, _ in THREADS])
def test_each_thread_gets_its_answers(sides: dict[str, Side], function: str, arguments: tuple[Any, ...]) -> None:
    """The same where the results have a server of their own, and one client serves all threads."""
    assert outcomes(sides, f"results:{function}", *arguments) == {name: [] for name in SIDES}
