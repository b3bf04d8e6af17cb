"""RabbitMQ as the broker: quorum queues on a topic exchange, confirmed publishes, a virtual host of its own."""

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from app.brokers.contract import Broker, Environ

if TYPE_CHECKING:
    from app.profile import Profile


def url(environ: Environ) -> str:
    """The role's address, with the account that RabbitMQ's own variables name."""
    user, password, vhost = (
        quote(environ.get(f"RABBITMQ_DEFAULT_{part}") or "kit", safe="") for part in ("USER", "PASS", "VHOST")
    )
    return f"amqp://{user}:{password}@broker:5672/{vhost}"


def settings(_: "Profile") -> dict[str, Any]:
    return {
        # From RabbitMQ 4 on, tasks with an ETA block classic queues and quorum queues on a direct exchange; quorum and topic
        # together are delayed by the broker itself (kombu #2481, rabbitmq-server #11948).
        "task_default_queue_type": "quorum",
        "task_default_exchange_type": "topic",
        "broker_transport_options": {"confirm_publish": True},
        "broker_heartbeat": 30,  # seconds; celery's 120 notices a dead connection after four minutes
        # consumer_timeout closes the channel (406): consume again instead of lingering (celery #6760).
        "broker_channel_error_retry": True,
    }


broker = Broker(
    name="rabbitmq", schemes=("amqp", "amqps", "pyamqp"), url=url, settings=settings, compose_file="compose.rabbitmq.yaml"
)
