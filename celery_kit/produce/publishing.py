"""Publishes a task: with one timeout for all steps, one clear error, and a producer that keeps its channel.

Celery's own timeouts can add up to minutes on a broker that does not answer, or have no end (celery #6911, #4627): each step
has a timeout and retries of its own, and a confirm has none. Here PUBLISH_TIMEOUT bounds all of them together. Celery's pool
closes a producer's channel after each message and opens another for the next, which costs a third of a small `delay()`.
"""

import math
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

from celery.app import amqp
from kombu import Connection as KombusConnection
from kombu import Producer as KombuProducer
from kombu import Queue
from kombu.connection import ConnectionPool as KombusConnectionPool
from kombu.connection import PooledConnection as KombusPooledConnection
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool
from kombu.resource import Resource
from kombu.utils.collections import HashedSeq
from kombu.utils.imports import symbol_by_name

from celery_kit.base import correlation
from celery_kit.base.conf import transport_options as own_options
from celery_kit.base.messages import Part, RefusedError, UnroutedError
from celery_kit.brokers import Queues, room, transports
from celery_kit.engine.parts import on
from celery_kit.fixes import broadcast, needed, patched

T = TypeVar("T")
PLAIN = (int, float, bool, type(None))


def brief(arguments: Any) -> str | None:
    """saferepr of a task's arguments, by repr, which is five times as fast; None unless they are few and plain."""
    if not on("brief"):
        return None
    if type(arguments) is dict:
        fit = all(map(_reads_the_same, arguments)) and all(map(_reads_the_same, arguments.values()))
    else:
        fit = type(arguments) in (tuple, list) and all(map(_reads_the_same, arguments))
    return text if fit and len(text := repr(arguments)) < 500 else None


def _reads_the_same(value: Any) -> bool:
    if type(value) is str:
        return len(value) < 100 and value.isprintable() and "'" not in value and "\\" not in value
    return type(value) in PLAIN


def must_arrive(declared: Any, exchange: Any, key: str | None) -> bool:
    """Whether a message goes to one of the queues declared with it. An exchange of the user's own may have no queue."""
    to = (getattr(exchange, "name", exchange) or "", key)
    return any(
        to in ((queue.exchange.name, queue.routing_key), ("", queue.name))
        for queue in declared or ()
        if isinstance(queue, Queue)
    )


class Producer(KombuProducer):
    """Retries for `publish_timeout` seconds, whether the broker answers or not, and then raises OperationalError.

    With `retry=False` it tries once. The message may have reached the broker all the same, if its confirm was lost. A retry has
    the same task id.
    """

    publish_timeout = 10.0
    #: Seconds for one broker of several, so that there is time left for the next.
    broker_timeout = 10.0
    #: `Broker.like`, `Broker.explain`.
    like: Callable[[Any, Part, float], None] | None = None
    explain: Callable[[BaseException], str | None] | None = None

    def publish(  # type: ignore[override]  # kombu spells the options out
        self, body: Any, retry: bool = False, retry_policy: Any = None, **options: Any
    ) -> Any:
        options["timeout"] = options.get("timeout") or self.broker_timeout
        options["confirm_timeout"] = options.get("confirm_timeout") or self.broker_timeout
        if options.get("mandatory") is None:
            options["mandatory"] = must_arrive(options.get("declare"), options.get("exchange"), options.get("routing_key"))
        publish = super().publish
        if not retry:
            return publish(body, **options)
        return self.with_retries(lambda: publish(body, **options), self.timeout_of(retry_policy))

    def timeout_of(self, retry_policy: Any) -> float:
        """How long to retry, in seconds: the producer's timeout, or the policy's if it is longer."""
        return max(self.publish_timeout, _seconds(retry_policy or {}))

    def publish_like(self, part: Part, declare: Iterable[Any]) -> None:
        """Publish one message that is like its sample, once."""
        for entity in declare:
            self.maybe_declare(entity)
        if self.like:
            self.like(self.channel, part, self.broker_timeout)

    def with_retries(self, step: Callable[[], T], timeout: float | None = None) -> T:
        """Do a step on this producer's channel. Retry it on a new connection for `timeout` seconds.

        The new connection is to the next broker, if there are several, as in kombu's own retry.
        """
        deadline = time.monotonic() + (timeout or self.publish_timeout)
        pause, failures = 0.05, 0
        while True:
            try:
                return step()
            except RefusedError:
                raise
            except Exception as error:
                connection: Any = self.connection
                errors = (*connection.recoverable_connection_errors, *connection.recoverable_channel_errors, OperationalError)
                if not isinstance(error, errors):
                    if self.explain and (why := self.explain(error)):
                        error.add_note(f"celery-kit: {why}")
                    raise
                connection.collect()
                if not isinstance(error, (UnroutedError, *connection.recoverable_channel_errors)):
                    connection.maybe_switch_next()
                self.revive(connection)
                if time.monotonic() + pause > deadline:
                    raise OperationalError(str(error) or type(error).__name__) from error
            if connection.completes_cycle(failures):
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            failures += 1

    def maybe_declare(self: Any, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        known = self.channel.connection.client.declared_entities  # kombu checks it too, but binds a copy of the queue first
        if entity and entity.can_cache_declaration and hash(entity) in known:
            return False
        return KombuProducer.maybe_declare(self, entity, retry, **retry_policy)

    def _get_channel(self: Any) -> Any:
        fresh = callable(self._channel)  # a promise
        channel = KombuProducer._get_channel(self)
        if fresh and (bound := getattr(channel, "bound", None)):  # celery_kit/brokers/rabbitmq/transport.py
            bound(self.broker_timeout)
        return channel

    channel = property(_get_channel, KombuProducer._set_channel)

    def __exit__(self: Any, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        if exc_type and (connection := self.__connection__):
            connection.collect()
            self.revive(connection)
        self.release()


def _seconds(policy: dict[str, Any]) -> float:
    """The shortest time for which a retry policy asks, in seconds."""
    retries = policy.get("max_retries", 0)
    return math.inf if retries is None else float(retries * policy.get("interval_max", 0))


class Producers(ProducerPool):
    """Producers that keep their connection and channel between messages."""

    def release(self: Any, resource: Any) -> None:
        Resource.release(self, resource)

    def prepare(self, p: Any) -> Any:
        producer: Any = super().prepare(p)
        if not producer.connection.connected:  # known to be lost
            producer.revive(producer.connection)
        return producer


class Connection(KombusConnection):
    """kombu's, with the kit's transports for their schemes. (The setting broker_transport would lose the `s` of rediss.)

    kombu's own table of schemes is not changed: the other apps of the process use it.
    """

    def get_transport_cls(self: Any) -> Any:
        known = transports().get(self.transport_cls) if isinstance(self.transport_cls, str) else None
        return symbol_by_name(known) if known else KombusConnection.get_transport_cls(self)

    def Pool(self, limit: int | None = None, **options: Any) -> "ConnectionPool":
        return ConnectionPool(self, limit, **options)

    def __eqhash__(self: Any) -> Any:
        """kombu has one pool for all connections that are equal in this; a plain one must not get this one's transport."""
        return HashedSeq(Connection, *KombusConnection.__eqhash__(self))


class PooledConnection(Connection, KombusPooledConnection): ...


class ConnectionPool(KombusConnectionPool):
    def new(self: Any) -> Any:
        return PooledConnection(self, **dict(self.connection._info(resolve=False)))


AMQPBase: Any = patched(amqp.AMQP, "missing_queue_type")  # its stubs know little of it


class AMQP(AMQPBase):  # type: ignore[misc]
    """Celery's, with these connections and producers, and the brokers' own arguments of queues."""

    queues_cls = Queues

    def Connection(self, *args: Any, transport_options: Any = None, **options: Any) -> Connection:
        """A connection of this app, with the kit's transport options beneath those given."""
        options["transport_options"] = {**own_options(self.app.conf), **(transport_options or {})}
        return Connection(*args, **options)

    BrokerConnection = Connection

    @cached_property
    def send_task_message(self) -> Callable[..., Any]:
        """Celery's, with the headers of celery_kit/base/correlation.py, and the exchanges of celery_kit/fixes/broadcast.py."""
        send = self._create_task_sender()

        def send_task_message(producer: Any, name: str, message: Any, headers: Any = None, **options: Any) -> Any:
            if options.get("declare") is None and needed("broadcast"):
                queue = options.get("queue")
                queue = self.queues[queue] if isinstance(queue, str) else queue
                if known := broadcast.exchanges(self.queues.values(), queue, options.get("exchange")):
                    options["declare"] = known
            return send(producer, name, message, headers=correlation.named(headers), **options)

        return send_task_message

    def as_task_v2(self, task_id: str, name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        for header, arguments in (("argsrepr", args or ()), ("kwargsrepr", kwargs or {})):
            if options.get(header) is None:
                options[header] = brief(arguments)  # Celery's saferepr takes a tenth of a `delay()`
        return super().as_task_v2(task_id, name, args, kwargs, *more, **options)

    @property
    def producer_pool(self: Any) -> Any:
        if self._producer_pool is None:
            conf = self.app.conf
            # Connecting is tried once at a time: the producer retries.
            connection = self.app.connection_for_write(transport_options={"max_retries": 0})
            broker = room(conf.broker_write_url)
            timeout = float(conf.get("publish_timeout", Producer.publish_timeout))
            more: dict[str, Any] = {"publish_timeout": timeout, "broker_timeout": timeout / max(1, len(connection.alt))}
            for name in ("like", "explain"):
                if step := getattr(broker, name, None):
                    more[name] = staticmethod(step)
            limit = self.app.pool.limit  # asking for it also has Celery let go of this pool in a forked child
            self._producer_pool = Producers(
                connection.Pool(limit=limit), limit=limit, Producer=type("Producer", (Producer,), more)
            )
        return self._producer_pool
