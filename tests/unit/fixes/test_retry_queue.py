"""A message's exchange and routing key, read back as the queue that they mean."""

from typing import Any

import pytest
from kombu.transport.native_delayed_delivery import calculate_routing_key

from celery_kit.fixes.retry_queue import DELIVERY, named


@pytest.mark.parametrize(
    ("options", "queue"),
    [
        ({"exchange": "mails", "routing_key": "mails"}, "mails"),
        ({"exchange": DELIVERY, "routing_key": calculate_routing_key(5, "mails.urgent")}, "mails.urgent"),
        ({"exchange": "news", "routing_key": "news.sport"}, None),
        ({"exchange": "mails", "routing_key": "mails", "queue": "other"}, "other"),
        ({}, None),
    ],
)
def test_only_what_means_a_queue_is_named(options: dict[str, Any], queue: str | None) -> None:
    found = named({**options, "retries": 2})
    assert found.get("queue") == queue and found["retries"] == 2
    assert ("exchange" in found) == ("exchange" in options and queue in (None, "other"))
