"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from kombu.transport import TRANSPORT_ALIASES

from app.brokers import embedded, rabbitmq, redis
from app.brokers.contract import Broker

__all__ = ["BROKERS", "Broker", "connect", "serving"]

BROKERS: dict[str, Broker] = {room.broker.name: room.broker for room in (rabbitmq, redis, embedded)}


def serving(url: str) -> Broker:
    """The broker that serves a URL; those that share a scheme share a protocol. Raises StopIteration where there is none."""
    scheme = url.partition(":")[0].partition("+")[0]
    return next(broker for broker in BROKERS.values() if scheme in broker.schemes)


def connect() -> None:
    """Have kombu take the rooms' transports for their schemes. (The setting broker_transport would lose the `s` of rediss.)"""
    for broker in BROKERS.values():
        if broker.transport:
            TRANSPORT_ALIASES.update(dict.fromkeys(broker.schemes, broker.transport))
