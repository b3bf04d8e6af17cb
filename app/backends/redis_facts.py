"""What Redis, as the results server, says."""

from typing import Any

from redis import Redis

from app.brokers.redis_facts import faults, product_of
from app.facts import PATIENCE, Server


def facts(app: Any) -> Server:
    """Ask the server, on a connection of its own. Raises redis.ConnectionError where it does not answer."""
    with Redis.from_url(app.conf.result_backend, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE) as client:
        info, keys = client.info(), client.dbsize()
    product, version = product_of(info)
    return Server(product, version, memory=info["used_memory"], keys=int(keys), faults=faults(info, "results server"))
