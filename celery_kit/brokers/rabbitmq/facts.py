"""Facts about RabbitMQ. AMQP gives the number of waiting messages, the management interface the queues and what workers hold.

The counts of the management interface are up to 5 s old. Quorum queues do not report the age of their next message. Without the
interface (RABBITMQ_MANAGEMENT_URL, or a port of RABBITMQ_MANAGEMENT_PORT on the broker's host), only the default queue is
reported.
Source: RabbitMQ's HTTP API reference, GET /api/queues/{vhost}.
"""

import json
from base64 import b64encode
from collections.abc import Mapping
from ssl import CERT_NONE, SSLContext, create_default_context
from typing import TYPE_CHECKING, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from celery import Celery

from celery_kit.base.facts import PATIENCE, Queue, Server, known_queues
from celery_kit.base.messages import PAUSED
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

    Over TLS if the connection is, with the same certificates. Of several ports of a machine, those of a cluster's nodes, the
    first that answers is asked: each knows all of the cluster.
    """
    secured, host = vars(connection)["ssl"], connection.hostname or ""
    host = f"[{host}]" if ":" in host else host
    ports = environ.get("RABBITMQ_MANAGEMENT_PORT") or ("15671" if secured else "15672")
    urls = [f"http{'s' if secured else ''}://{host}:{port}" for port in ports.split(",")]
    if given := environ.get("RABBITMQ_MANAGEMENT_URL"):
        urls = [given]
    account = b64encode(f"{connection.userid}:{connection.password}".encode()).decode()
    context = _context(secured if isinstance(secured, Mapping) else {}) if urls[0].startswith("https:") else None
    while True:
        request = Request(f"{urls.pop(0)}/api/{path}", headers={"Authorization": f"Basic {account}"})
        try:
            with urlopen(request, timeout=PATIENCE, context=context) as answer:
                return cast(list[Headers], json.load(answer))
        except OSError:
            if not urls:
                raise


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
    paused = _paused(connection, environ) if reported else None
    queues = []
    for name in known_queues(app, (*held, *(paused or ()))):
        stopped = None if paused is None else name in paused
        if held and name not in held:  # not there: to ask for it is an error, which the broker logs
            queues.append(Queue(name, 0, 0, 0, paused=stopped))
            continue
        channel: Channel = connection.channel()
        try:
            now = channel.queue_declare(name, passive=True)
            queues.append(Queue(name, now.message_count, held.get(name), now.consumer_count, paused=stopped))
            channel.close()
        except connection.channel_errors:  # no worker has declared it yet; the error closes the channel
            queues.append(Queue(name, 0, 0, 0, paused=stopped))
    delayed = sum(queue.get("messages", 0) for queue in reported if queue["name"].startswith(DELAYED))
    if delayed:
        notes.append(f"{delayed} messages wait for their ETA")
    faults = too_old(version)
    if reported:
        faults += _without_majority(reported)
        try:
            members, found = _nodes(connection, environ)
            notes[:0], faults = members, [*found, *faults]
        except OSError as error:  # it waits for each node
            faults.append((f"the broker does not say how its nodes are ({error})", "make ps; one of them may be frozen"))
    return Server("RabbitMQ", version, queues, notes=notes, faults=faults, delayed=delayed if reported else None)


def _paused(connection: Connection, environ: Environ) -> set[str] | None:
    """The paused queues; None if the account may not know."""
    vhost = quote(connection.virtual_host, safe="")
    try:
        bound = management(connection, environ, f"exchanges/{vhost}/{PAUSED}/bindings/source")
    except HTTPError as error:
        return set() if error.code == 404 else None  # not found: no worker or operator has declared the exchange yet
    return {one["routing_key"] for one in bound}


def too_old(version: str) -> list[tuple[str, str]]:
    """The fault of a release before OLDEST, with its remedy; otherwise nothing."""
    if int(version.partition(".")[0]) >= OLDEST:
        return []
    return [(f"the broker is RabbitMQ {version}: its queues have no priorities", f"RabbitMQ {OLDEST} or later")]


def _nodes(connection: Connection, environ: Environ) -> tuple[list[str], list[tuple[str, str]]]:
    """A note on the nodes of a cluster, if it is one, and what is wrong with them, with the remedies.

    RabbitMQ accepts no message while an alarm is on.
    """
    nodes = management(connection, environ, "nodes?columns=name,running,partitions,mem_alarm,disk_free_alarm")
    faults = []
    for node in nodes:
        for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if node.get(alarm):
                faults.append((f"the broker is out of {what} and accepts no task ({node['name']})", f"give it more {what}"))
        if node.get("partitions"):
            others = ", ".join(map(str, node["partitions"]))
            faults.append(
                (f"{node['name']} has been cut from {others}: its data may be older", "restart the node that fewer others see")
            )
    wanted, running = len(nodes), sorted(node["name"] for node in nodes if node.get("running"))
    if wanted == 1:
        return [], faults
    if len(running) < wanted:
        away = ", ".join(sorted(node["name"] for node in nodes if not node.get("running")))
        more = "one more, and its queues stop" if len(running) * 2 > wanted else "its queues have stopped"
        faults.append((f"only {len(running)} of {wanted} nodes of the broker run ({away}): {more}", "make ps; make up"))
    return [f"{len(running)} of {wanted} nodes run: {', '.join(running)}"], faults


def _without_majority(queues: list[Headers]) -> list[tuple[str, str]]:
    """The fault of quorum queues of which too few copies are online to accept or deliver a message."""
    stopped = [one["name"] for one in queues if one.get("members") and 2 * len(one.get("online", ())) <= len(one["members"])]
    if not stopped:
        return []
    named = f"{', '.join(sorted(stopped)[:3])}{', …' if len(stopped) > 3 else ''}"
    return [(f"queues without a majority of their copies stand still: {named}", "start the other nodes")]
