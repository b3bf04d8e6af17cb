"""RabbitMQ as three nodes: quorum queues have a copy on each, and go on while two of them see each other.

A process starts with the node that its host name chooses, so that workers spread over the nodes, and goes to the next one when
that fails (`transport.py`).
"""

from dataclasses import replace
from socket import gethostname
from zlib import crc32

from celery_kit.brokers.contract import Environ
from celery_kit.brokers.rabbitmq.broker import broker as rabbitmq
from celery_kit.brokers.rabbitmq.broker import url as url_of

#: The nodes' names, for their clients. Among themselves they are node-1 to node-3, on a network of their own.
HOSTS = ("broker-1", "broker-2", "broker-3")


def url(environ: Environ) -> str:
    """The URLs of the nodes, with a semicolon between them."""
    first = crc32(gethostname().encode()) % len(HOSTS)
    return url_of(environ, HOSTS[first:] + HOSTS[:first])


broker = replace(
    rabbitmq, name="rabbitmq-cluster", url=url, compose_file="compose.rabbitmq-cluster.yaml", hosts=HOSTS, manifests=None
)
