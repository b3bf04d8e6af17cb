"""A forked child and its parent share no socket: both go on, and neither receives data of the other."""

from pathlib import Path
from typing import Any

import pytest

from tests.compat.conftest import SERVED, covering
from tests.compat.rig import KIT, Side

SHAPES: dict[str, dict[str, Any]] = {
    "one by one": {"way": "one_by_one", "children": 3, "rounds": 20},
    "beside threads": {"way": "one_by_one", "children": 3, "rounds": 20, "threads": 4},
    "many": {"way": "many", "children": 2, "rounds": 50},
    "questions to workers": {"way": "asked", "children": 2, "rounds": 1},
}


@pytest.mark.parametrize(("served", "shape", "name"), covering(SERVED, SHAPES, KIT), indirect=["served"], scope="session")
def test_parent_and_children_go_on(served: dict[str, Side], name: str, shape: str) -> None:
    """A child uses none of its parent's connections for producers, results and remote control."""
    found = served[name].client("forks:forks", *SHAPES[shape].values())
    assert found == [[] for _ in range(SHAPES[shape]["children"] + 1)]


@pytest.mark.parametrize(("served", "name"), covering(["redis", "rabbitmq"], KIT), indirect=["served"], scope="session")
def test_a_child_gets_what_its_parent_sent(served: dict[str, Side], name: str) -> None:
    """A result object from before the fork works in parent and child, if any process may read a result."""
    assert served[name].client("forks:forks", "one_by_one", 3, 1, 0, True) == [[], [], [], []]


@pytest.mark.parametrize(("served", "name"), covering(SERVED, KIT), indirect=["served"], scope="session")
def test_children_of_a_process_whose_spool_is_sent(served: dict[str, Side], name: str, tmp_path: Path) -> None:
    """A child does not have its parent's lock, nor its parent's thread."""
    assert served[name].client("forks:spooled", 2, SPOOL=str(tmp_path)) == [[], [], []]


#: Not eventlet with rpc: its hub polls with an object that child and parent share, and may end a child's wait.
GREENLETS = [*((name, "gevent") for name in SERVED), ("redis", "eventlet"), ("rabbitmq", "eventlet")]


@pytest.mark.parametrize(("served", "patched"), GREENLETS, indirect=["served"], scope="session")
def test_greenlets_that_wait_are_not_the_childs(served: dict[str, Side], patched: str) -> None:
    """A greenlet of the parent also exists in the child, and must not read the parent's data there."""
    found = served["fast"].client("forks:forks", *SHAPES["one by one"].values(), PATCHED=patched)
    assert found == [[], [], [], []]
