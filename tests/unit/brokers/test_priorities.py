"""A priority means the same on every broker: 0 to 9, higher is more urgent. celery_kit/brokers/redis/transport.py"""

import pytest
from kombu.transport.redis import Channel as KombuChannel

from celery_kit.brokers import BROKERS
from celery_kit.brokers.redis.transport import Channel, Transport
from celery_kit.produce.publishing import Connection

LOOKS_LIKE_REDIS = [one for broker in BROKERS.values() for one, kind in broker.transports.items() if ".redis." in kind]


def channel() -> Channel:
    """A channel that is connected to nothing."""
    return object.__new__(Channel)


def test_the_most_urgent_list_is_read_first() -> None:
    """kombu reads the lists in the order of the steps."""
    assert list(Channel.priority_steps) == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("priority", "step"),
    [(None, 0), (0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6), (7, 6), (8, 6), (9, 9), (12, 9), (-1, 0)],
)
def test_a_message_is_written_to_a_list_that_plain_celery_reads(priority: int | None, step: int) -> None:
    """kombu reads only the lists of its own four steps."""
    assert channel()._get_message_priority({"properties": {"priority": priority}}) == step
    assert step in KombuChannel.priority_steps


@pytest.mark.parametrize(("priority", "key"), [(0, "mails"), (1, "mails\x06\x161"), (9, "mails\x06\x169")])
def test_the_list_with_the_plain_name_is_the_least_urgent(priority: int, key: str) -> None:
    """So monitors find messages without a priority."""
    assert vars(KombuChannel)["_q_for_pri"](channel(), "mails", priority) == key


def test_kombus_order_of_priorities_is_still_the_opposite() -> None:
    """If this fails, celery_kit/brokers/redis/transport.py may go."""
    assert list(KombuChannel.priority_steps) == [0, 3, 6, 9]


@pytest.mark.parametrize("scheme", LOOKS_LIKE_REDIS)
def test_a_url_leads_to_our_transport_and_keeps_its_scheme(scheme: str) -> None:
    connection = Connection(f"{scheme}://localhost:6379/3")
    assert issubclass(connection.get_transport_cls(), Transport)
    assert connection.as_uri().startswith(f"{scheme}://")
    assert bool(connection.ssl) == (scheme == "rediss")
