"""Facts about Redis as the results server."""

from celery import Celery

from celery_kit.base.facts import PATIENCE, Server
from celery_kit.brokers.redis.facts import faults, product_of
from celery_kit.results.redis.backend import celerys


def facts(app: Celery) -> Server:
    """Ask the server, by a client that Celery makes. Raises redis.ConnectionError if it does not answer."""
    backend = celerys(app, app.conf.result_backend)
    backend.connparams |= {"socket_timeout": PATIENCE}
    if "socket_connect_timeout" in backend.connparams:  # a socket file has no such option
        backend.connparams |= {"socket_connect_timeout": PATIENCE}
    with backend.client as client:
        info, keys = client.info(), client.dbsize()
    product, version = product_of(info)
    return Server(product, version, memory=info["used_memory"], keys=int(keys), faults=faults(info, "results server"))
