"""What an earlier kombu's Redis transport gets of kombu 5.7's: fixes earlier_channel, earlier_poller."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from celery_kit.brokers.redis import fixes, poller, transport


def test_the_kits_transport_has_what_it_calls_with_either_kombu() -> None:
    channel: Any = transport.Channel
    options = {"unacked_restore_interval", "unacked_restore_throttle", "engine", "take_ahead"}
    assert options <= set(channel.from_transport_options) and channel.unacked_restore_interval == 10
    for kits, earlier in ((transport.Channel, fixes.EarlierChannel), (poller.Poller, fixes.EarlierPoller)):
        assert all(hasattr(kits, name) for name in vars(earlier) if not name.startswith("__"))


class Client:
    """The client of a channel that publishes at once, like kombu's before 5.7."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def lpush(self, *command: Any) -> None:
        self.sent.append(command)


class Published:
    client = Client()

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Client]:
        yield self.client

    def basic_publish(self, message: Any, exchange: str, routing_key: str) -> None:
        with self.conn_or_acquire() as client:
            client.lpush(routing_key, message)


Fixed: Any = type("Fixed", (fixes.EarlierChannel, Published), {})


def test_a_message_for_a_batch_is_not_sent() -> None:
    channel, taken = Fixed(), list[Any]()
    channel.basic_publish("one", "", "queue", _publish_batch=SimpleNamespace(add=lambda *command: taken.append(command)))
    channel.basic_publish("two", "", "queue")
    assert (taken, channel.client.sent) == ([("lpush", "queue", "one")], [("queue", "two")])
