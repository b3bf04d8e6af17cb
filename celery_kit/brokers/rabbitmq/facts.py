"""Facts about RabbitMQ. AMQP gives the number of waiting messages, the management interface the queues and what workers hold.

The counts of the management interface are up to 5 s old. Quorum queues do not report the age of their next message. Without the
interface (RABBITMQ_MANAGEMENT_URL, or port RABBITMQ_MANAGEMENT_PORT of the broker's host), only the default queue is reported.
Source: RabbitMQ's HTTP API reference, GET /api/queues/{vhost}.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from ssl import CERT_NONE, SSLContext, create_default_context
from typing import TYPE_CHECKING, cast
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from celery import Celery

from celery_kit.base.facts import PATIENCE, Queue, Server, known_queues
from celery_kit.base.types import Channel, Connection, Headers
from celery_kit.brokers.contract import Environ

if TYPE_CHECKING:
    from upstream.amqp import Connection as AmqpConnection

#: The prefix of the queues in which delayed tasks wait.
DELAYED = "celery_delayed_"

#: The first release whose quorum queues have priorities and a delivery limit by default.
OLDEST = 4


def management(connection: Connection, environ: Environ, path: str) -> list[Headers]:
    """The objects at /api/`path`, read with the broker's own account. Raises OSError if the interface does not answer.

    Over TLS if the connection is, with the same certificates.
    """
    secured, host = vars(connection)["ssl"], connection.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = environ.get("RABBITMQ_MANAGEMENT_PORT") or ("15671" if secured else "15672")
    url = environ.get("RABBITMQ_MANAGEMENT_URL") or f"http{'s' if secured else ''}://{host}:{port}"
    account = b64encode(f"{connection.userid}:{connection.password}".encode()).decode()
    request = Request(f"{url}/api/{path}", headers={"Authorization": f"Basic {account}"})
    context = _context(secured if isinstance(secured, Mapping) else {}) if url.startswith("https:") else None
    with urlopen(request, timeout=PATIENCE, context=context) as answer:
        return cast(list[Headers], json.load(answer))


def _context(options: Mapping[str, object]) -> SSLContext:
    """What py-amqp's options of TLS say, for another connection. Without any, the system's authorities are trusted."""
    trusted, shown, key = (str(options.get(name) or "") for name in ("ca_certs", "certfile", "keyfile"))
    context = create_default_context(cafile=trusted or None)
    if options.get("cert_reqs") == CERT_NONE:
        context.check_hostname, context.verify_mode = False, CERT_NONE
    if shown:
        context.load_cert_chain(shown, key or None)
    return context


def facts(app: Celery, connection: Connection, environ: Environ) -> Server:
    """Ask the server of `connection`. Raises the connection's errors if it does not answer."""
    version = cast("AmqpConnection", connection.connection).server_properties["version"]
    notes: list[str] = []
    try:
        reported = management(
            connection, environ, f"queues/{quote(connection.virtual_host, safe='')}?disable_stats=true&enable_queue_totals=true"
        )
    except (URLError, OSError) as error:
        reported = []
        notes.append(f"its management interface does not answer ({error}): other queues, and what workers hold, are not shown")
    held = {queue["name"]: queue.get("messages_unacknowledged") for queue in reported}
    queues = []
    for name in known_queues(app, held):
        channel: Channel = connection.channel()
        try:
            now = channel.queue_declare(name, passive=True)
            queues.append(Queue(name, now.message_count, held.get(name), now.consumer_count))
            channel.close()
        except connection.channel_errors:  # no worker has declared it yet; the error closes the channel
            queues.append(Queue(name, 0, 0, 0))
    delayed = sum(queue.get("messages", 0) for queue in reported if queue["name"].startswith(DELAYED))
    if delayed:
        notes.append(f"{delayed} messages wait for their ETA")
    faults = [*too_old(version), *(_alarms(connection, environ) if reported else [])]
    return Server("RabbitMQ", version, queues, notes=notes, faults=faults, delayed=delayed if reported else None)


def too_old(version: str) -> list[tuple[str, str]]:
    """The fault of a release before OLDEST, with its remedy; otherwise nothing."""
    if int(version.partition(".")[0]) >= OLDEST:
        return []
    return [(f"the broker is RabbitMQ {version}: its queues have no priorities", f"RabbitMQ {OLDEST} or later")]


def _alarms(connection: Connection, environ: Environ) -> list[tuple[str, str]]:
    """The alarms that are on, with their remedies. RabbitMQ accepts no message while one is."""
    found = []
    for node in management(connection, environ, "nodes?columns=name,mem_alarm,disk_free_alarm"):
        for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if node.get(alarm):
                found.append((f"the broker is out of {what} and accepts no task ({node['name']})", f"give it more {what}"))
    return found
