"""THE tables of brokers that run as servers. A new broker has a row here. Code that uses a broker names no product."""

from testbed.servers.contract import Server
from testbed.servers.rabbitmq import cluster as rabbitmq_cluster
from testbed.servers.rabbitmq import server as rabbitmq
from testbed.servers.redis import of_protocol, sentinel
from testbed.servers.redis import server as redis

__all__ = ["EVERY", "SERVERS", "Server"]

#: What every test meets.
SERVERS: dict[str, Server] = {"rabbitmq": rabbitmq, "redis": redis}
#: These too: the same products in other forms, which the matrix takes where BROKER names one.
EVERY: dict[str, Server] = {
    **SERVERS,
    "rabbitmq-cluster": rabbitmq_cluster,
    "redis-sentinel": sentinel,
    "valkey": of_protocol("valkey", "valkey/valkey:8"),
}
