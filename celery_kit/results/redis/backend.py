"""Redis as the result backend, in database 1: any process can read a result by its id, and chords work."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast
from urllib.parse import quote

from celery.states import READY_STATES

from celery_kit.base.conf import transport_options
from celery_kit.base.types import Options, ResultBackend
from celery_kit.brokers.contract import Broker, Environ, account, tls
from celery_kit.brokers.redis.broker import COPY
from celery_kit.brokers.redis.credentials import read_again
from celery_kit.fixes import needed
from celery_kit.results.contract import Backend
from celery_kit.results.waits import listen, listen_again

if TYPE_CHECKING:
    from celery import Celery
    from redis import Redis

    from celery_kit.base.choices import Choices
    from celery_kit.results.redis.claims import Claims


#: How many keys are copied by one round trip.
AT_ONCE = 200


class RedisBackend(ResultBackend, Protocol):
    """celery.backends.redis.RedisBackend."""

    app: "Celery"
    client: "Redis"
    connparams: Options
    sentinel: object
    #: Bytes on an object, and text on the class.
    task_keyprefix: bytes
    decode_result: Callable[..., Options]


def url(environ: Environ, broker: Broker) -> str:
    """The URL of the results server that comes with the broker, or else of the host `results`."""
    if broker.results_url:
        return broker.results_url(environ)
    user, secret = (quote(part, safe="") for part in account(environ, "RESULTS"))
    secured = tls(environ)
    return f"redis{secured and 's'}://{secret and f'{user}:{secret}@'}results:6379/1{secured}"


def settings(_: "Choices") -> Options:
    """Celery's settings for this backend."""
    return {
        # In seconds. They detect a frozen server, and a connection that a firewall has dropped.
        "redis_socket_timeout": 5.0,
        "redis_socket_connect_timeout": 3.0,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 30,
        # Storing a result is retried while the results server is unavailable, but not for ever, so that a worker can still
        # stop.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 20,
    }


def claims(app: "Celery", url: str) -> "Claims":
    """The claims on the server at `url`. The client has the settings above (and TLS), because Celery's backend makes it."""
    from celery_kit.results.redis.claims import Claims

    backend = celerys(app, url)
    prefix = backend.task_keyprefix.decode().removesuffix(str(type(backend).task_keyprefix))  # Celery's global_keyprefix
    return Claims(backend.client, prefix)


def celerys(app: "Celery", url: str) -> RedisBackend:
    """Celery's own backend for the server at `url`."""
    from celery.app import backends

    kind, url = cast("tuple[Callable[..., RedisBackend], str]", backends.by_url(url, app.loader))
    return fit(kind(app=app, url=url))


def fit(backend: RedisBackend) -> RedisBackend:
    """Have it read its account again each time that it connects, if that is from a file, and ask sentinels as the broker does.

    Remove the option `socket_keepalive` from a backend that connects to a socket file, which does not take it.
    """
    if hasattr(backend, "sentinel"):  # redis-py's module, which its class is taken from
        from celery_kit.brokers.redis import sentinel

        backend.sentinel = sentinel
        backend.connparams["addresses"] = transport_options(backend.app.conf).get("addresses")
    backend.connparams = read_again(backend.connparams)
    if "path" in backend.connparams:
        backend.connparams.pop("socket_keepalive", None)
    return backend


def adapt(backend: RedisBackend) -> None:
    """Have `get()` subscribe to its results. Celery subscribes when a task is sent.

    That takes a third of a `delay()`, and makes sending a task depend on one more server.
    """
    from celery.backends import redis

    if not isinstance(backend, vars(redis)["RedisBackend"]):  # a class of the user's own, for the same scheme
        return
    fit(backend)
    if needed("waiting for results in Redis"):
        from celery_kit.results.redis.waiting import ResultConsumer

        backend.on_task_call = lambda producer, task_id: None
        listen(backend, ResultConsumer)


def carry(app: "Celery", source: str, target: str) -> int:
    """Copy a database to another one, key by key, each with the time that it has to live. Raises redis-py's errors.

    What is there already stays, but the state of a task that has ended replaces one that has not.
    """
    from redis.exceptions import ResponseError

    former, latter = celerys(app, source), celerys(app, target)
    keys, copied = cast("list[bytes]", list(former.client.scan_iter(count=1_000))), 0
    for start in range(0, len(keys), AT_ONCE):
        several = keys[start : start + AT_ONCE]
        with former.client.pipeline(transaction=False) as reading, latter.client.pipeline(transaction=False) as writing:
            for key in several:
                reading.dump(key)
                reading.pttl(key)
            answers = reading.execute()
            for key, content, left in zip(several, answers[::2], answers[1::2], strict=True):
                if content is not None:  # it has not expired meanwhile
                    writing.restore(key, max(0, left), content, replace=_ended(former, key) and not _ended(latter, key))
            for answer in writing.execute(raise_on_error=False):
                if isinstance(answer, ResponseError) and not str(answer).startswith("BUSYKEY"):
                    raise answer
                copied += not isinstance(answer, ResponseError)
    return copied


def _ended(backend: RedisBackend, key: bytes) -> bool:
    """Whether a key has the state of a task that has ended."""
    if not key.startswith(backend.task_keyprefix):
        return False
    try:
        return backend.decode_result(backend.client.get(key))["status"] in READY_STATES
    except Exception:  # it is not there, or anything
        return False


def close_inherited(backend: RedisBackend) -> None:
    """In a forked child: make another client, and subscribe by another connection."""
    pubsub, backend.result_consumer._pubsub = backend.result_consumer._pubsub, None
    if pubsub is not None and pubsub.connection is not None:
        pubsub.connection.disconnect()  # in a forked child redis-py only closes the socket
    vars(backend).pop("client", None)
    listen_again(backend)


backend = Backend(
    name="redis",
    schemes=("redis", "rediss", "sentinel"),
    url=url,
    settings=settings,
    has_server=True,
    read_elsewhere=True,
    chords=True,
    thread_safe=True,
    facts="celery_kit.results.redis.facts:facts",
    claims=claims,
    carry=carry,
    adapt=adapt,
    copy=COPY,
    close_inherited=close_inherited,
    fast_classes={
        **dict.fromkeys(("redis", "rediss"), "celery_kit.results.redis.store:Backend"),
        "sentinel": "celery_kit.results.redis.store:SentinelBackend",
    },
)
