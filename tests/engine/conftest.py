from collections.abc import Iterator

import pytest

from tests.harness.servers import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server
