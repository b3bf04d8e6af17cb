"""Which tests of a parallel run share a process."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from testbed.servers import SERVERS


class Grouped(LoadScopeScheduling):  # type: ignore[misc]
    """Runs the tests of a group in one process, one after the other. (xdist 3.8's loadgroup does nothing on pytest 9.2.)

    `group`: the name of a test's group, by the test's id.
    """

    def __init__(self, config: pytest.Config, log: Any, group: Callable[[str], str]) -> None:
        super().__init__(config, log)
        self._split_scope = group


def file_and_broker(nodeid: str) -> str:
    """The tests of a file that share a stack: those of each broker, with and without SECURE, and those of none."""
    file, _, test = nodeid.partition("::")
    found = re.search(rf"[\[-]((?:{'|'.join(sorted(SERVERS, key=len, reverse=True))})(?:-secure)?)[\]-]", test)
    return f"{file} {found[1]}" if found else file
