"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from collections.abc import Sequence
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celery_kit.brokers import embedded
from celery_kit.brokers.contract import Broker
from celery_kit.brokers.rabbitmq import broker
from celery_kit.brokers.rabbitmq.dead import Queues
from celery_kit.brokers.redis import broker

__all__ = ["BROKERS", "Broker", "Queues", "explained", "let_go", "other_broker", "room", "schemes_of"]

BROKERS: dict[str, Broker] = {room.broker.name: room.broker for room in (broker, broker, embedded)}


def room(url: str | Sequence[str] | None) -> Broker | None:
    """The room of the broker at `url`, if it is one of the table's; those that share a scheme share a protocol.

    A room's name is the scheme of its server that does not run (celery_kit/brokers/embedded.py). None as well where several are
    named that are not of one kind.
    """
    schemes = schemes_of(url)
    return next((broker for broker in BROKERS.values() if schemes and schemes <= {*broker.schemes, broker.name}), None)


def schemes_of(url: str | Sequence[str] | None) -> set[str]:
    """What the addresses of a setting begin with: one, several with a semicolon between them, or a list, as kombu has it."""
    texts = [url] if isinstance(url, str) else url or []
    each = [one for text in texts for one in text.split(";")]
    return {one.partition(":")[0].partition("+")[0] for one in each if one == each[0] or "://" in one}


def other_broker(scheme: str) -> Broker | None:
    """A broker that kombu knows and the kit has no room for: it is used as Celery uses it."""
    if scheme not in TRANSPORT_ALIASES:
        return None
    return Broker(name=scheme, schemes=(scheme,), url=lambda _: "", settings=lambda _: {}, dead_letters=None, facts=None)


def let_go(connection: Any) -> None:
    """In a forked child: close its end of a connection of kombu's that is its parent's, without a word to the server.

    It connects again once it is used.
    """
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return
    if broker := room(transport.driver_type):
        broker.let_go(connection)
    connection._transport = connection._connection = connection._default_channel = None
    connection.declared_entities.clear()


def explained(app: Any, error: BaseException) -> str | None:
    """What the broker's room says of its answer to a declaration."""
    broker = room(app.conf.broker_write_url)
    return broker.explain(error) if broker and broker.explain else None
