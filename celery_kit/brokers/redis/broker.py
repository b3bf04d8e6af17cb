"""Redis as the broker: a server that keeps its data (append-only file), database 0."""

from typing import TYPE_CHECKING, Any

from celery_kit.base.capabilities import DOCS, Limit
from celery_kit.base.choices import MOST_CONCURRENCY
from celery_kit.brokers.contract import Broker, Environ
from celery_kit.brokers.redis.bulk import Bulk, like
from celery_kit.brokers.redis.dead import RedisDeadLetters
from celery_kit.engine.parts import engine, on
from celery_kit.fixes import needed

#: kombu's transport, with priorities as AMQP means them, dead letters, and the fast engine's fetch; None: kombu's own is taken.
TRANSPORT = "celery_kit.brokers.redis.transport:Transport" if needed("transport of Redis") else None

if TYPE_CHECKING:
    from celery_kit.base.choices import Choices


def url(_: Environ) -> str:
    return "redis://broker:6379/0"


def settings(profile: "Choices") -> dict[str, Any]:
    return {
        "broker_transport_options": {
            # Read by celery_kit/produce/publishing.py and celery_kit/brokers/redis/transport.py
            "engine": engine(profile.engine, "fetch"),
            "take_ahead": not profile.prefetch and on("take_ahead"),  # ENGINE=fast's: celery_kit/engine/prefetch.py
            # An unacknowledged message runs again after this long: longer than any task, and any ETA's wait (celery #5935).
            "visibility_timeout": profile.visibility_timeout,
            # How often that is looked after, in seconds, and on every look; kombu's 10 and every tenth add 100 s. Whoever dies
            # while looking keeps the others from it for as long as the last.
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "unacked_mutex_expire": 10,
            # kombu passes None where nothing is named, and a frozen server then hangs the publisher for ever (celery #6911).
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            # A connection for each running task's acknowledgement: kombu's 10 fail on green pools (kombu #1350). Only a cap.
            "max_connections": MOST_CONCURRENCY + 20,
        },
    }


def close_inherited(connection: Any) -> None:
    """Those that wait for messages. The others are redis-py's affair: it looks who has made them."""
    for channel in list(connection._transport.channels):
        for name in ("client", "subclient"):
            if own := getattr(vars(channel).get(name), "connection", None):
                own.disconnect()  # no more than a close(), in another process than its own


broker = Broker(
    name="redis",
    schemes=("redis", "rediss"),
    url=url,
    settings=settings,
    dead_letters=RedisDeadLetters() if TRANSPORT else None,
    facts="celery_kit.brokers.redis.facts:facts",
    compose_file="compose.redis.yaml",
    transports={"redis": TRANSPORT, "rediss": TRANSPORT} if TRANSPORT else {},
    bulk=Bulk,
    like=like,
    close_inherited=close_inherited,
    limits={
        "quorum_queues": Limit("cannot", "a queue is a list, on one server; the argument is ignored", "seen by this test"),
        "acks_late_redelivery": Limit(
            "differently",
            "the message is held in the `unacked` hash, for the visibility timeout at least, an hour by default",
            f"{DOCS}/getting-started/backends-and-brokers/redis.html#visibility-timeout",
        ),
    },
    backend_limits={
        "rpc": {
            "result_expires": Limit(
                "differently",
                "an answer that nobody fetches stays on the broker: its list gets no time to live",
                "kombu/transport/redis.py, _put: x-expires is known only to the channel that declared the queue, the sender's",
            ),
        },
    },
)
