"""THE table of brokers that run as servers. A new broker has a row here. Code that uses a broker names no product."""

from testbed.servers.contract import Server
from testbed.servers.rabbitmq import server as rabbitmq
from testbed.servers.redis import server as redis

__all__ = ["SERVERS", "Server"]

SERVERS: dict[str, Server] = {"rabbitmq": rabbitmq, "redis": redis}
