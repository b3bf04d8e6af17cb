"""Fix `read_timeouts`: a read of results that has timed out, where Celery takes that for a lost connection."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_kit.results.waits import ReadTimeouts


class Earlier:
    """Celery 5.6's way, celery/backends/asynchronous.py."""

    connected = 0

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            self.connected += 1


class Consumer(ReadTimeouts, Earlier):
    def __init__(self) -> None: ...


def test_a_read_that_times_out_keeps_its_connection() -> None:
    consumer = Consumer()
    with pytest.raises(TimeoutError), consumer.reconnect_on_error():
        raise TimeoutError
    assert not consumer.connected


def test_a_lost_connection_is_replaced() -> None:
    consumer = Consumer()
    with consumer.reconnect_on_error():
        raise ConnectionResetError
    assert consumer.connected == 1
