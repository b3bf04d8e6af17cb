"""What RabbitMQ says: by AMQP how much waits now, by its management interface which queues there are and what workers hold.

The management interface's own counts are up to 5 s old. Quorum queues do not tell how old their next message is. Without that
interface (RABBITMQ_MANAGEMENT_URL, or port RABBITMQ_MANAGEMENT_PORT of the broker's host) only the default queue is looked at.
Source: RabbitMQ's HTTP API reference, GET /api/queues/{vhost}.
"""

import json
from base64 import b64encode
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

from celery_kit.base.facts import PATIENCE, Queue, Server, known_queues
from celery_kit.brokers.contract import Environ

DELAYED = "celery_delayed_"

#: The first release whose quorum queues have priorities, and count deliveries up to a limit of their own.
OLDEST = 4


def management(connection: Any, environ: Environ, path: str) -> Any:
    """GET /api/`path` as JSON, with the broker's own account. Raises OSError where nothing answers."""
    port = environ.get("RABBITMQ_MANAGEMENT_PORT") or "15672"
    host = f"[{connection.hostname}]" if ":" in connection.hostname else connection.hostname
    url = environ.get("RABBITMQ_MANAGEMENT_URL") or f"http://{host}:{port}"
    account = b64encode(f"{connection.userid}:{connection.password}".encode()).decode()
    with urlopen(Request(f"{url}/api/{path}", headers={"Authorization": f"Basic {account}"}), timeout=PATIENCE) as answer:
        return json.load(answer)


def facts(app: Any, connection: Any, environ: Environ) -> Server:
    """Ask the server behind `connection`. Raises the connection's errors where it does not answer."""
    version = connection.connection.server_properties["version"]
    notes: list[str] = []
    try:
        told = management(
            connection, environ, f"queues/{quote(connection.virtual_host, safe='')}?disable_stats=true&enable_queue_totals=true"
        )
    except (URLError, OSError) as error:
        told = []
        notes.append(f"its management interface does not answer ({error}): other queues, and what workers hold, are not shown")
    held = {queue["name"]: queue.get("messages_unacknowledged") for queue in told}
    queues = []
    for name in known_queues(app, held):
        channel = connection.channel()
        try:
            now = channel.queue_declare(name, passive=True)
            queues.append(Queue(name, now.message_count, held.get(name), now.consumer_count))
            channel.close()
        except connection.channel_errors:  # no worker has declared it yet; the channel is closed by that
            queues.append(Queue(name, 0, 0, 0))
    if delayed := sum(queue.get("messages", 0) for queue in told if queue["name"].startswith(DELAYED)):
        notes.append(f"{delayed} messages wait for their ETA")
    faults = [*too_old(version), *(_alarms(connection, environ) if told else [])]
    return Server("RabbitMQ", version, queues, notes=notes, faults=faults)


def too_old(version: str) -> list[tuple[str, str]]:
    """What `doctor` says of a release before OLDEST."""
    if int(version.partition(".")[0]) >= OLDEST:
        return []
    return [(f"the broker is RabbitMQ {version}: its queues know no priorities", f"RabbitMQ {OLDEST} or later")]


def _alarms(connection: Any, environ: Environ) -> list[tuple[str, str]]:
    """While an alarm is on, RabbitMQ takes no message from anybody."""
    found = []
    for node in management(connection, environ, "nodes?columns=name,mem_alarm,disk_free_alarm"):
        for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
            if node.get(alarm):
                found.append((f"the broker is out of {what} and accepts no task ({node['name']})", f"give it more {what}"))
    return found
