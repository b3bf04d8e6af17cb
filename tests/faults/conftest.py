"""A setup for each pair of broker and pool, in the process that runs its trials. It is removed at the end."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.faults.setup import Pair, Setup
from tests.harness.combinations import COMBINATIONS
from tests.harness.containers import clean, require_engine
from tests.harness.groups import Grouped

PAIRS = [Pair(one.broker.name, one.pool) for one in COMBINATIONS if one.backend.name == "redis"]


class Setups:
    """The setup of the current pair. The previous one is closed."""

    def __init__(self) -> None:
        self.setup: Setup | None = None

    def __call__(self, pair: Pair) -> Setup:
        if not self.setup or self.setup.pair != pair:
            self.close()
            self.setup = Setup(pair)
        return self.setup

    def close(self) -> None:
        """Close the setup: also needed if a trial left something that would affect the next one."""
        if self.setup:
            self.setup.close()
            self.setup = None


@pytest.fixture(scope="session")
def setups() -> Iterator[Setups]:
    require_engine()
    setups = Setups()
    try:
        yield setups
    finally:
        setups.close()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Grouped:
    """The trials of a pair share its setup."""
    return Grouped(config, log, lambda nodeid: "-".join(nodeid.rpartition("[")[2].rstrip("]").split("-")[:2]))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A setup is created once: all trials of a pair run one after the other.
    items.sort(key=lambda item: item.nodeid.rpartition("[")[2].split("-")[:2] if "[" in item.nodeid else [])


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        clean()
