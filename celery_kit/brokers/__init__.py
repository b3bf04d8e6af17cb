"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

from celery_kit.brokers.contract import Broker, schemes_of
from celery_kit.brokers.embedded import broker as embedded
from celery_kit.brokers.rabbitmq.broker import broker as rabbitmq
from celery_kit.brokers.rabbitmq.dead import Queues
from celery_kit.brokers.redis.broker import broker as redis

__all__ = ["BROKERS", "Broker", "Queues", "explained", "let_go", "other_broker", "room", "schemes_of", "transports"]

BROKERS: dict[str, Broker] = {room.name: room for room in (rabbitmq, redis, embedded)}


@cache
def transports() -> dict[str, str]:
    """By scheme, the transports that take the place of kombu's."""
    return {scheme: kind for broker in BROKERS.values() for scheme, kind in broker.transports.items()}


def room(url: str | Sequence[str] | None) -> Broker | None:
    """The room of the broker at `url`, if it is one of the table's; those that share a scheme share a protocol.

    A room's name is the scheme of its server that does not run (celery_kit/brokers/embedded.py). None as well where several are
    named that are not of one kind.
    """
    schemes = schemes_of(url)
    return next((broker for broker in BROKERS.values() if schemes and schemes <= {*broker.schemes, broker.name}), None)


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
