"""RabbitMQ as the broker: quorum queues on a topic exchange, confirmed publishes, a virtual host of its own."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from celery_kit.base.capabilities import DOCS, Limit
from celery_kit.base.refusals import refuse
from celery_kit.base.types import Connection, Options
from celery_kit.brokers.contract import ROLES, Broker, Copy, Environ, account, tls
from celery_kit.brokers.rabbitmq.bulk import Bulk, like
from celery_kit.brokers.rabbitmq.dead import BROKER_LIMIT, explain
from celery_kit.brokers.rabbitmq.delayed import park
from celery_kit.brokers.rabbitmq.manifests import manifests
from celery_kit.engine.parts import engine, on
from celery_kit.fixes import needed

if TYPE_CHECKING:
    from upstream.amqp import Connection as AmqpConnection

    from celery_kit.base.choices import Choices

#: By scheme, the transports that replace kombu's. They use private functions of py-amqp.
TRANSPORTS = {
    "amqp": "celery_kit.brokers.rabbitmq.transport:Transport",
    "pyamqp": "celery_kit.brokers.rabbitmq.transport:Transport",
    "amqps": "celery_kit.brokers.rabbitmq.transport:SecureTransport",
}


def url(environ: Environ, hosts: Sequence[str] = ("broker",)) -> str:
    """The URLs of the hosts, with a semicolon between them, and the account and virtual host of RabbitMQ's own variables."""
    user, secret = account(environ, "BROKER")
    if (chosen := environ.get("RABBITMQ_DEFAULT_USER") or "kit").removesuffix("-2") in ROLES:
        refuse(f"RABBITMQ_DEFAULT_USER={chosen} is not allowed; any name but those of the roles: {', '.join(ROLES)}")
    if user == "kit":  # RabbitMQ's own variables may name it otherwise
        user, secret = chosen, environ.get("RABBITMQ_DEFAULT_PASS") or secret or "kit"
    vhost = environ.get("RABBITMQ_DEFAULT_VHOST") or "kit"
    user, secret, vhost = (quote(part, safe="") for part in (user, secret, vhost))
    secured = tls(environ)
    return ";".join(f"amqp{secured and 's'}://{user}:{secret}@{host}:5672/{vhost}{secured}" for host in hosts)


def settings(profile: "Choices") -> Options:
    """Celery's settings for this broker."""
    return {
        # Since RabbitMQ 4, tasks with an ETA block classic queues, and quorum queues on a direct exchange. For quorum queues on
        # a topic exchange the broker itself delays them (kombu #2481, rabbitmq-server #11948).
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        # The same for every other queue that a producer or `-Q` names: Celery's defaults are classic and direct.
        "task_create_missing_queue_type": "quorum",
        "task_create_missing_queue_exchange_type": "topic",
        "broker_transport_options": {
            "engine": engine(profile.engine, "read_ahead"),  # read by celery_kit/brokers/rabbitmq/transport.py
            "confirm_publish": True,  # a publish returns after the broker has confirmed it
            # Of ENGINE=fast, celery_kit/brokers/rabbitmq/window.py: what is prefetched and requeued counts as delivered.
            "take_ahead": not profile.prefetch and profile.max_deliveries == BROKER_LIMIT and on("take_ahead"),
        },
        # Seconds. The broker notices a dead connection after two to three intervals, as soon as a lease ends on Redis: with
        # Celery's 120, after four minutes or more. A worker notices sooner: it checks five times in an interval, and asks the
        # broker (celery_kit/brokers/rabbitmq/transport.py). RabbitMQ's documentation advises against less than 5.
        "broker_heartbeat": 5,
        "broker_heartbeat_checkrate": 5.0,
        # consumer_timeout closes the channel (406): consume again, and do not idle (celery #6760).
        "broker_channel_error_retry": True,
    }


def close_inherited(connection: Connection) -> None:
    """In a forked child: close the parent's socket without a shutdown, and detach its channels."""
    amqp: AmqpConnection | None = getattr(connection, "_connection", None)
    if amqp is None or amqp._transport is None:
        return
    transport, channels = amqp._transport, amqp.channels or {}
    sock, transport.sock, transport.connected = transport.sock, None, False
    if sock is not None:
        sock.close()
    for channel in channels.values():
        channel.connection = None
    amqp._transport = amqp.connection = amqp.channels = None


broker = Broker(
    name="rabbitmq",
    schemes=("amqp", "amqps", "pyamqp"),
    url=url,
    settings=settings,
    dead_letters="celery_kit.brokers.rabbitmq.dead:RabbitmqDeadLetters",
    facts="celery_kit.brokers.rabbitmq.facts:facts",
    pauses="celery_kit.brokers.rabbitmq.pauses:RabbitmqPauses",
    end="celery_kit.brokers.rabbitmq.moving:RabbitmqEnd",
    compose_file="compose.rabbitmq.yaml",
    transports=TRANSPORTS if needed("transport of RabbitMQ") else {},
    delays_tasks=True,
    park=park,
    explain=explain,
    bulk=Bulk,
    like=like,
    lead="celery_kit.brokers.rabbitmq.beats:Lead",
    close_inherited=close_inherited,
    manifests=manifests,
    # Queues, with their messages, are files that only a stopped node leaves alone.
    copy=Copy(volume="rabbitmq-data", version=("rabbitmqctl", "version"), without=("*.pid",)),
    variables="RABBITMQ_",
    ports={15672: "RABBITMQ_MANAGEMENT_PORT"},
    limits={
        "priority": Limit(
            "differently",
            "two levels, above 4 and the others, each in the order of sending; of three tasks one is from the lower level",
            "https://www.rabbitmq.com/docs/4.0/quorum-queues#priorities",
        ),
        "scheduled": Limit(
            "differently",
            "the list is empty: the broker holds the task, no worker does",
            f"{DOCS}/getting-started/backends-and-brokers/rabbitmq.html#native-delayed-delivery",
        ),
        "pool_grow": Limit(
            "differently",
            "the pool grows, the number of tasks at once does not: quorum queues have a static prefetch count",
            f"{DOCS}/getting-started/backends-and-brokers/rabbitmq.html#using-quorum-queues",
        ),
    },
    backend_limits={
        "rpc": {
            "state_after_get": Limit(
                "differently",
                "once the sender has waited with get(), a later task stays PENDING for it until it waits for that one too",
                "celery/backends/rpc.py, get_task_meta: it polls the queue whose messages get()'s consumer has already taken",
            ),
        },
    },
)
