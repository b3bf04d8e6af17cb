"""Redis as the result backend: any process reads a result by its id, and chords work. Database 1."""

from typing import TYPE_CHECKING, Any

from celery_kit.brokers.contract import Broker, Environ
from celery_kit.fixes import needed
from celery_kit.results.contract import Backend
from celery_kit.results.waits import listen, listen_anew

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.choices import Choices
    from celery_kit.results.redis.claims import Claims


def url(environ: Environ, broker: Broker) -> str:
    return broker.results_url(environ) if broker.results_url else "redis://results:6379/1"


def settings(_: "Choices") -> dict[str, Any]:
    return {
        # A server that is frozen, or a connection that a firewall forgot, is noticed. In seconds.
        "redis_socket_timeout": 5.0,
        "redis_socket_connect_timeout": 3.0,
        "redis_socket_keepalive": True,
        "redis_backend_health_check_interval": 30,
        # A results server that is away for a moment delays a task's end; finite, so that a worker can still stop.
        "result_backend_always_retry": True,
        "result_backend_max_retries": 20,
    }


def claims(app: "Celery", url: str) -> "Claims":
    """The claims on the server at `url`, by a client with the settings above (and TLS) as Celery's backend makes it."""
    from celery_kit.results.redis.claims import Claims

    backend = celerys(app, url)
    prefix = backend.task_keyprefix.decode().removesuffix(type(backend).task_keyprefix)  # Celery's global_keyprefix
    return Claims(backend.client, prefix)


def celerys(app: "Celery", url: str) -> Any:
    """Celery's own backend for the server at `url`, in whatever form that names it."""
    from celery.app import backends

    find: Any = backends.by_url
    kind, url = find(url, app.loader)
    return fit(kind(app=app, url=url))


def fit(backend: Any) -> Any:
    """Take from a backend what its kind of connection does not know: a socket file has nothing to keep alive."""
    if "path" in backend.connparams:
        backend.connparams.pop("socket_keepalive", None)
    return backend


def adapt(backend: Any) -> None:
    """Have `get()` subscribe to what it waits for. Celery subscribes for every task that is sent: a third of a `delay()`, and
    one more server that has to answer before a task can be sent.
    """
    from celery.backends import redis

    if not isinstance(backend, vars(redis)["RedisBackend"]):  # one of the user's own, for the same scheme
        return
    fit(backend)
    if needed("waiting for results in Redis"):
        from celery_kit.results.redis.waiting import ResultConsumer

        backend.on_task_call = lambda producer, task_id: None
        listen(backend, ResultConsumer)


def let_go(backend: Any) -> None:
    """Make another client, and listen by another connection."""
    ear, backend.result_consumer._pubsub = backend.result_consumer._pubsub, None
    if ear is not None and ear.connection is not None:
        ear.connection.disconnect()  # no more than a close(), in another process than its own
    vars(backend).pop("client", None)
    listen_anew(backend)


backend = Backend(
    name="redis",
    schemes=("redis", "rediss"),
    url=url,
    settings=settings,
    has_server=True,
    read_elsewhere=True,
    chords=True,
    thread_safe=True,
    facts="celery_kit.results.redis.facts:facts",
    claims=claims,
    adapt=adapt,
    let_go=let_go,
    fast_class="celery_kit.results.redis.store:Backend",
)
