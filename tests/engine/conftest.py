from collections.abc import Iterator

import pytest

from tests.engine.rig import Server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.stop()
