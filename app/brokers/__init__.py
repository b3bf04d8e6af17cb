"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from app.brokers import embedded, rabbitmq, redis
from app.brokers.contract import Broker

__all__ = ["BROKERS", "Broker"]

BROKERS: dict[str, Broker] = {room.broker.name: room.broker for room in (rabbitmq, redis, embedded)}
