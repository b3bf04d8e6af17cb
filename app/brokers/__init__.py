"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from collections.abc import Sequence

from kombu.transport import TRANSPORT_ALIASES

from app.brokers import embedded, rabbitmq, redis
from app.brokers.contract import Broker
from app.brokers.rabbitmq_dead import Queues

__all__ = ["BROKERS", "Broker", "Queues", "addresses", "connect", "room"]

BROKERS: dict[str, Broker] = {room.broker.name: room.broker for room in (rabbitmq, redis, embedded)}


def connect() -> None:
    """Have kombu take the rooms' transports for their schemes. (The setting broker_transport would lose the `s` of rediss.)"""
    for broker in BROKERS.values():
        if broker.transport:
            TRANSPORT_ALIASES.update(dict.fromkeys(broker.schemes, broker.transport))


def room(url: str | Sequence[str] | None) -> Broker | None:
    """The room of the broker at `url`, if it is one of the table's; those that share a scheme share a protocol.

    A room's name is the scheme of its server that does not run (app/brokers/embedded.py). None as well where several are named
    that are not of one kind.
    """
    schemes = {one.partition(":")[0].partition("+")[0] for one in addresses(url)}
    return next((broker for broker in BROKERS.values() if schemes and schemes <= {*broker.schemes, broker.name}), None)


def addresses(url: str | Sequence[str] | None) -> list[str]:
    """The addresses that a setting names: one, several with a semicolon between them, or a list, as kombu reads it."""
    return [one for text in ([url] if isinstance(url, str) else url or []) for one in text.split(";")]
