"""Redis as the broker: a server that keeps its data (append-only file), database 0."""

from typing import TYPE_CHECKING, Any

from app.brokers.contract import Broker, Environ
from app.brokers.redis_bulk import Bulk
from app.brokers.redis_dead import RedisDeadLetters
from app.limits import DOCS, Limit
from app.pools import MOST_CONCURRENCY

#: kombu's transport, with priorities as AMQP means them.
TRANSPORT = "app.brokers.redis_transport:Transport"

if TYPE_CHECKING:
    from app.profile import Profile


def url(_: Environ) -> str:
    return "redis://broker:6379/0"


def settings(profile: "Profile") -> dict[str, Any]:
    return {
        "broker_transport_options": {
            # An unacknowledged message runs again after this long: longer than any task, and any ETA's wait (celery #5935).
            "visibility_timeout": profile.visibility_timeout,
            # kombu passes None where nothing is named, and a frozen server then hangs the publisher for ever (celery #6911).
            "socket_timeout": 5,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 25,
            # A connection for each running task's acknowledgement: kombu's 10 fail on green pools (kombu #1350). Only a cap.
            "max_connections": MOST_CONCURRENCY + 20,
        },
    }


broker = Broker(
    name="redis",
    schemes=("redis", "rediss"),
    url=url,
    settings=settings,
    dead_letters=RedisDeadLetters(),
    facts="app.brokers.redis_facts:facts",
    compose_file="compose.redis.yaml",
    transport=TRANSPORT,
    bulk=Bulk,
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
