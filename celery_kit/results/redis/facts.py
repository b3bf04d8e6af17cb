"""What Redis, as the results server, says."""

from typing import Any

from celery_kit.base.facts import PATIENCE, Server
from celery_kit.brokers.redis.facts import faults, product_of
from celery_kit.results.redis.backend import celerys


def facts(app: Any) -> Server:
    """Ask the server, by a client as Celery makes it. Raises redis.ConnectionError where it does not answer."""
    backend = celerys(app, app.conf.result_backend)
    backend.connparams |= {"socket_timeout": PATIENCE}
    if "socket_connect_timeout" in backend.connparams:  # not of a socket file
        backend.connparams |= {"socket_connect_timeout": PATIENCE}
    with backend.client as client:
        info, keys = client.info(), client.dbsize()
    product, version = product_of(info)
    return Server(product, version, memory=info["used_memory"], keys=int(keys), faults=faults(info, "results server"))
