"""Redis with replicas, whose primary the sentinels know: they are asked for each new connection.

kombu and redis-py have the protocol. What is different here: a message counts as sent once a replica has it too (WAIT), so
that a failover loses none that was accepted; and a program of another network may be given other addresses than those that the
sentinels name.

After a failover, the sentinels have the former primary close its connections as soon as it answers them. Until then it refuses
to write (`min-replicas-to-write`). Both end a connection, and the next one is to the new primary.
Sources: kombu/transport/redis.py 5.7.0, SentinelChannel; redis 8.1.0, sentinel.py;
https://valkey.io/topics/sentinel/, https://valkey.io/commands/wait/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from kombu.utils.url import url_to_parts
from redis import Redis
from redis import sentinel as redis_py

from celery_kit.brokers.redis import transport
from celery_kit.fixes import needed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from upstream.redis import Client, ConnectionPool

    from celery_kit.base.types import Options

#: The port of a sentinel whose URL names none.
PORT = 26379
#: The name that the sentinels of a stack have for its primary and replicas (deploy/brokers/redis-sentinel).
MASTER = "celery-kit"
#: Seconds to wait for one sentinel: the next one is asked then.
PATIENCE = 1.0
#: Parameters of a connection that those to the sentinels of a stack share with those to its servers.
SHARED = ("username", "password", "credential_provider")

TIMES = ("socket_timeout", "socket_connect_timeout")


class Sentinel(redis_py.Sentinel):
    """redis-py's, with the arguments that Celery and kombu give. `addresses`: in place of those that the sentinels name.

    Without the name of a primary it is that of a stack, whose sentinels have the accounts of its servers.
    """

    def __init__(self, *sentinels: object, addresses: Mapping[str, str] | None = None, **parameters: object) -> None:
        self.addresses = dict(addresses or {})
        super().__init__(*sentinels, **parameters)  # type: ignore[no-untyped-call]

    def master_for(
        self,
        service_name: str | None,
        redis_class: type = Redis,
        connection_pool_class: type[redis_py.SentinelConnectionPool] = redis_py.SentinelConnectionPool,
        **parameters: object,
    ) -> Client:
        """A client of the primary. Its connections ask the sentinels where that is."""
        given = self.connection_kwargs | parameters
        shared = {} if service_name else {name: given[name] for name in SHARED if given.get(name)}
        for one in self.sentinels:
            known = one.connection_pool.connection_kwargs
            known |= {name: PATIENCE for name in TIMES if known.get(name) is None} | shared
        name = service_name or MASTER
        client: Client = super().master_for(name, Redis, connection_pool_class, **parameters)  # type: ignore[no-untyped-call]
        return client

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """The primary's address. Raises MasterNotFoundError, a ConnectionError, during a failover."""
        host, port = super().discover_master(service_name)  # type: ignore[no-untyped-call]
        place = f"{host}:{port}"
        host, _, instead = self.addresses.get(place, place).rpartition(":")
        return host, int(instead)


class Channel(transport.Channel):
    """A channel to the primary."""

    from_transport_options = (
        *transport.Channel.from_transport_options,
        "master_name",
        "min_other_sentinels",
        "sentinel_kwargs",
        "addresses",
        "replicas",
    )
    connection_class = redis_py.SentinelManagedConnection
    connection_class_ssl = redis_py.SentinelManagedSSLConnection
    replicas = 0 if needed("earlier_channel") else 1  # kombu before 5.7 publishes one command at a time
    master_name: str | None = None
    min_other_sentinels = 0
    sentinel_kwargs: Options | None = None
    addresses: Mapping[str, str] | None = None

    def _get_pool(self, asynchronous: bool = False) -> ConnectionPool:
        parameters = self._connparams(asynchronous)
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=parameters["db"])
        first = str(parameters.pop("host")), int(str(parameters.pop("port")))
        others = [url_to_parts(one) for one in self.connection.client.alt]
        places = [(str(one.hostname), one.port or PORT) for one in others] or [first]
        sentinel = Sentinel(
            places, self.min_other_sentinels, self.sentinel_kwargs or {}, addresses=self.addresses, **parameters
        )
        vars(self)["_async_sentinel_manager" if asynchronous else "_sentinel_manager"] = sentinel  # kombu closes it
        return sentinel.master_for(self.master_name).connection_pool

    def known_replicas(self) -> int:
        """How many replicas the sentinels have seen, those that are gone included. Raises redis-py's errors."""
        manager: redis_py.Sentinel = vars(self.client.connection_pool)["sentinel_manager"]
        # The one that has answered last. redis-py's annotation says that it answers a list.
        asked = cast("dict[str, dict[str, str]]", manager.sentinels[0].sentinel_masters())
        return int(asked[self.master_name or MASTER]["num-slaves"])

    @property
    def address(self) -> str:
        """The servers, whichever sentinel was asked."""
        client = self.connection.client
        return ";".join(client.alt) or super().address


class Transport(transport.Transport):
    """The kit's transport of Redis, to the primary that the sentinels name."""

    default_port = PORT
    Channel = Channel
