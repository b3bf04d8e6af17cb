"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from kombu.transport import TRANSPORT_ALIASES

from app.brokers import embedded, rabbitmq, redis
from app.brokers.contract import Broker
from app.brokers.rabbitmq_dead import Queues

__all__ = ["BROKERS", "Broker", "Queues", "connect", "room"]

BROKERS: dict[str, Broker] = {room.broker.name: room.broker for room in (rabbitmq, redis, embedded)}


def connect() -> None:
    """Have kombu take the rooms' transports for their schemes. (The setting broker_transport would lose the `s` of rediss.)"""
    for broker in BROKERS.values():
        if broker.transport:
            TRANSPORT_ALIASES.update(dict.fromkeys(broker.schemes, broker.transport))


def room(url: str | None) -> Broker | None:
    """The room of the broker at `url`, if it is one of the table's; those that share a scheme share a protocol.

    A room's name is the scheme of its server that does not run (app/brokers/embedded.py).
    """
    scheme = (url or "").partition(":")[0].partition("+")[0]
    return next((broker for broker in BROKERS.values() if scheme in (*broker.schemes, broker.name)), None)
