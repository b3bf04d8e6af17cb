"""The brokers: one product, one module. The contract is :class:`Broker`, the table is :data:`BROKERS`."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

from celery import Celery
from kombu.transport import TRANSPORT_ALIASES

from celery_kit.base.types import Connection
from celery_kit.brokers.contract import Broker, schemes_of
from celery_kit.brokers.embedded import broker as embedded_row
from celery_kit.brokers.rabbitmq.broker import broker as rabbitmq_row
from celery_kit.brokers.rabbitmq.cluster import broker as rabbitmq_cluster_row
from celery_kit.brokers.rabbitmq.dead import Queues
from celery_kit.brokers.redis.broker import broker as redis_row
from celery_kit.brokers.redis.broker import sentinel as redis_sentinel_row

__all__ = ["BROKERS", "Broker", "Queues", "close_inherited", "explained", "other_broker", "room", "schemes_of", "transports"]

valkey_row = replace(redis_row, name="valkey", compose_file="compose.valkey.yaml", copy=None)
BROKERS: dict[str, Broker] = {
    row.name: row for row in (rabbitmq_row, rabbitmq_cluster_row, redis_row, redis_sentinel_row, valkey_row, embedded_row)
}


@cache
def transports() -> dict[str, str]:
    """By scheme, the kit's transports that replace kombu's."""
    return {scheme: kind for broker in BROKERS.values() for scheme, kind in broker.transports.items()}


def room(url: str | Sequence[str] | None) -> Broker | None:
    """The table's row for the broker at `url`, or None. Brokers that share a scheme share a protocol.

    The scheme of a server that does not run is the row's name (celery_kit/brokers/embedded.py). None too for several URLs of
    different kinds.
    """
    schemes = schemes_of(url)
    return next((broker for broker in BROKERS.values() if schemes and schemes <= {*broker.schemes, broker.name}), None)


def other_broker(scheme: str) -> Broker | None:
    """A row for a broker that kombu supports and the kit has no module for, or None. Celery uses it as it is."""
    if scheme not in TRANSPORT_ALIASES:
        return None
    return Broker(name=scheme, schemes=(scheme,), url=lambda _: "", settings=lambda _: {}, dead_letters=None, facts=None)


def close_inherited(connection: Connection) -> None:
    """In a forked child: close its end of one of the parent's connections. Sends nothing to the server.

    The connection is opened again when it is used.
    """
    transport = getattr(connection, "_transport", None)
    if transport is None:
        return
    if broker := room(transport.driver_type):
        broker.close_inherited(connection)
    vars(connection).update(_transport=None, _connection=None, _default_channel=None)
    connection.declared_entities.clear()


def explained(app: Celery, error: BaseException) -> str | None:
    """One line on an error that the broker's answer to a declaration has caused, or None."""
    broker = room(app.conf.broker_write_url)
    return broker.explain(error) if broker and broker.explain else None
