"""The cost of a task for RabbitMQ and its worker, in numbers that noise does not affect: the purpose of ENGINE=fast.

The same for Redis: tests/unit/brokers/redis/test_round_trips.py.
"""

from collections import Counter
from pathlib import Path
from socket import socket
from struct import unpack_from
from typing import Any
from unittest.mock import patch

from testbed import deployed
from tests.engine.calls import total
from tests.engine.rabbitmq.proxy import Proxy
from tests.engine.rabbitmq.test_worker import Fast
from tests.engine.rabbitmq.test_worker import fast as fast
from tests.harness.workers import CONCURRENCY

TASKS = 2_000
#: The maximum of frames a task that a worker sends and receives. A delivery is three frames, and one acknowledgement is for
#: several tasks. Single acknowledgements would be 1.09 frames a task; start and exit of a worker are a tenth of a frame.
#: A worker that is faster than the proxy, such as solo, acknowledges fewer at once: 0.45 to 0.6.
SENT, RECEIVED = 0.9, 3.3
#: The maximum of socket calls a task. Solo makes 2.4 to 3.2, the others 1 to 1.4, plain Celery's worker more than twenty.
CALLS = 5
#: Files that a worker opens or renames for a task, its writes to files and pipes, and bytes of its log, at most, as on Redis.
#: The names of the worker and the queue are 60 bytes longer here, in each of two lines.
FILES, WRITES, LOGGED = 0.5, {"prefork": 7.0}, 1_050
HELLO = b"AMQP\0\0\x09\x01"


class Counted(Proxy):
    """Counts the frames in each direction."""

    def __init__(self, host: str, port: int) -> None:
        self.frames: Counter[bool] = Counter()
        self.begun: dict[socket, bytes] = {}
        super().__init__(host, port)

    def hear(self, source: socket, data: bytes) -> None:
        data = self.begun.pop(source, b"") + data
        at = len(HELLO) if data.startswith(HELLO) else 0
        while len(data) >= at + 7 and len(data) >= (end := at + 8 + unpack_from(">I", data, at + 3)[0]):
            self.frames[source.getsockname()[1] == self.port] += 1
            at = end
        self.begun[source] = data[at:]


def cost(fast: Fast, path: Path) -> tuple[float, ...]:
    """A worker's figures a task, from its start to its exit, in the environment of a container: frames sent and received, calls
    of sockets, files opened or renamed, writes to files, bytes of its log.
    """
    fast.environ |= {name: value for name, value in deployed.environment().items() if not name.startswith("CELERY_")}
    fast.environ |= {"CALLS": str(path), "DATA_DIR": str(path.parent), "HEARTBEAT_FILE": str(path.parent / "heartbeat")}
    ids = [fast.send("total", [1, 2]).id for _ in range(TASKS)]
    with patch("tests.engine.rabbitmq.test_worker.Proxy", Counted):
        proxy: Any = fast.behind_a_proxy("CELERY_BROKER_URL")
    worker = fast.worker("-I", "tests.engine.calls", "-c", str(CONCURRENCY[fast.pool]), "--loglevel", "INFO")
    fast.until_stored(ids, TASKS)
    fast.ends_with_nothing_left(worker)
    calls = (total(path, which) for which in range(3))
    return tuple(one / TASKS for one in (proxy.frames[True], proxy.frames[False], *calls, fast.log.stat().st_size))


def test_one_frame_speaks_for_many_tasks(fast: Fast, tmp_path: Path) -> None:
    """One socket call reads or writes many messages, with the broker and the results server alike. Files cost as little."""
    sent, received, calls, files, writes, logged = cost(fast, tmp_path / "calls")
    assert sent < SENT
    assert 3 <= received < RECEIVED
    assert calls < CALLS
    most = FILES, WRITES.get(fast.pool, 1.0), LOGGED
    assert all(one < limit for one, limit in zip((files, writes, logged), most, strict=True)), (files, writes, logged)
