"""Connections that a forked child inherits. celery_kit/brokers/__init__.py"""

import pytest
from kombu import Connection

from celery_kit import brokers


@pytest.mark.parametrize("url", ["amqp://nowhere", "redis://nowhere"])
def test_a_connection_that_was_never_opened_is_closed(url: str) -> None:
    """Its transport exists already, because somebody asked for it."""
    connection = Connection(url)
    assert connection.transport and not connection.connected
    brokers.close_inherited(connection)
    assert vars(connection)["_transport"] is None
