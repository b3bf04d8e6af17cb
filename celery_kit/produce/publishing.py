"""Publishes a task, with one timeout for all steps, one clear error, and a producer that reuses its channel.

Celery's own timeouts can add up to minutes on a broker that does not answer, or have no end (celery #6911, #4627): each step
has a timeout and retries of its own, and a confirm has none. Here PUBLISH_TIMEOUT limits all of them together. Celery's pool
closes a producer's channel after each message and opens another for the next, which takes a third of the time of a small
`delay()`.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from celery.app import amqp
from celery.app.amqp import task_message
from kombu import Connection as KombusConnection
from kombu import Exchange, Queue
from kombu import Producer as KombuProducer
from kombu.connection import ConnectionPool as KombusConnectionPool
from kombu.connection import PooledConnection as KombusPooledConnection
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool
from kombu.resource import Resource
from kombu.serialization import dumps
from kombu.transport.base import StdChannel, Transport
from kombu.utils.collections import HashedSeq
from kombu.utils.imports import symbol_by_name

from celery_kit.base import correlation, security
from celery_kit.base.conf import transport_options as own_options
from celery_kit.base.messages import Part, RefusedError, UnroutedError
from celery_kit.base.types import Callback, Channel, Headers, Options
from celery_kit.brokers import room, transports
from celery_kit.brokers.contract import current
from celery_kit.engine.parts import on
from celery_kit.fixes import broadcast, needed, patched
from celery_kit.produce.queues import Queues, Router

if TYPE_CHECKING:
    from celery_kit.base.signing import Signer

T = TypeVar("T")
#: As kombu's: max_retries, interval_start, interval_step, interval_max; in seconds.
RetryPolicy: TypeAlias = Mapping[str, Any]
PLAIN = (int, float, bool, type(None))


def brief(arguments: Mapping[str, object] | Sequence[object]) -> str | None:
    """Celery's description of a task's arguments, made by repr, which is five times as fast as saferepr.

    None if the arguments are not few and plain, so that the two may differ.
    """
    if not on("brief"):
        return None
    if type(arguments) is dict:
        fit = all(map(_reads_the_same, arguments)) and all(map(_reads_the_same, arguments.values()))
    else:
        fit = type(arguments) in (tuple, list) and all(map(_reads_the_same, arguments))
    return text if fit and len(text := repr(arguments)) < 500 else None


def _reads_the_same(value: object) -> bool:
    """Whether repr and saferepr describe the value alike."""
    if type(value) is str:
        return len(value) < 100 and value.isprintable() and "'" not in value and "\\" not in value
    return type(value) in PLAIN


def must_arrive(declared: Iterable[object] | None, exchange: object, key: str | None) -> bool:
    """Whether a message goes to one of the queues that are declared with it. Another exchange may have no queue."""
    to = (getattr(exchange, "name", exchange) or "", key)
    return any(
        to in ((queue.exchange.name, queue.routing_key), ("", queue.name))
        for queue in declared or ()
        if isinstance(queue, Queue)
    )


class Producer(KombuProducer):
    """Retries for `publish_timeout` seconds, whether the broker answers or not, and then raises OperationalError.

    With `retry=False` it tries once. If a confirm was lost, the message may have reached the broker nevertheless. A retry has
    the same task id.
    """

    connection: KombusConnection
    publish_timeout = 10.0
    #: Seconds for one broker of several, so that there is time left for the next.
    broker_timeout = 10.0
    #: `Broker.like`, `Broker.explain`.
    like: Callable[[Channel, Part, float], None] | None = None
    explain: Callable[[BaseException], str | None] | None = None

    def publish(  # type: ignore[override]  # kombu spells all options out
        self, body: object, retry: bool = False, retry_policy: RetryPolicy | None = None, **options: Any
    ) -> object:
        """Publish a message, as kombu's, and wait for the broker's confirm. Timeouts are in seconds.

        Raises OperationalError if the broker is unavailable, RefusedError or UnroutedError if it refuses the message.
        """
        if options.get("mandatory") is None:
            declared, exchange, key = map(options.get, ("declare", "exchange", "routing_key"))
            options["mandatory"] = must_arrive(declared, exchange, key)
        for name in ("timeout", "confirm_timeout"):
            options[name] = options.get(name) or self.broker_timeout
        publish: Callback = super().publish
        if not retry:
            return publish(body, **options)
        return self.with_retries(lambda: publish(body, **options), self.timeout_of(retry_policy))

    def timeout_of(self, retry_policy: RetryPolicy | None) -> float:
        """How long to retry, in seconds: the producer's timeout, or the policy's if it is longer."""
        policy = retry_policy or {}
        retries = policy.get("max_retries", 0)
        return max(self.publish_timeout, math.inf if retries is None else float(retries * policy.get("interval_max", 0)))

    def publish_like(self, part: Part, declare: Iterable[Exchange | Queue]) -> None:
        """Publish one message that is like its sample, without retries. `declare`: what it is sent to."""
        for entity in declare:
            self.maybe_declare(entity)
        if self.like:
            self.like(self.channel, part, self.broker_timeout)

    def reconnect(self, switch: bool = False) -> None:
        """Drop the connection and open another for the next message. `switch`: to the next broker, if there are several."""
        connection: Any = self.connection
        connection.collect()
        if switch:
            connection.maybe_switch_next()
        self.revive(connection)

    def with_retries(self, step: Callable[[], T], timeout: float | None = None) -> T:
        """Call `step`, which uses this producer's channel, and return its value. Retry it on a new connection.

        The new connection is to the next broker, if there are several, as in kombu's own retry. Raises OperationalError after
        `timeout` seconds, and any error at once that a retry cannot help.
        """
        deadline = time.monotonic() + (timeout or self.publish_timeout)
        pause, failures = 0.05, 0
        while True:
            try:
                return step()
            except RefusedError:
                raise
            except Exception as error:
                connection = self.connection
                channel_errors = connection.recoverable_channel_errors
                why = self.explain(error) if self.explain else None
                if why:
                    error.add_note(f"celery-kit: {why}")
                if why or not isinstance(error, (*connection.recoverable_connection_errors, *channel_errors, OperationalError)):
                    raise
                self.reconnect(switch=not isinstance(error, (UnroutedError, *channel_errors)))
                if time.monotonic() + pause > deadline:
                    raise OperationalError(str(error) or type(error).__name__) from error
            if connection.completes_cycle(failures):
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            failures += 1

    def maybe_declare(self, entity: Exchange | Queue, retry: bool = False, **retry_policy: object) -> bool:
        """Declare an exchange or a queue, unless this connection has declared it. Returns whether it was declared now."""
        known = self.channel.connection.client.declared_entities  # kombu checks it too, but binds a copy of the queue first
        if entity and entity.can_cache_declaration and hash(entity) in known:
            return False
        return super().maybe_declare(entity, retry, **retry_policy)

    def _get_channel(self: Any) -> Any:
        fresh = callable(self._channel)  # it is a function that opens the channel
        channel = KombuProducer._get_channel(self)
        if fresh and (bound := getattr(channel, "bound", None)):  # celery_kit/brokers/rabbitmq/transport.py
            bound(self.broker_timeout)
        return channel

    channel = property(_get_channel, KombuProducer._set_channel)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        if exc_type and self.__connection__:
            self.reconnect()
        self.release()


class SigningProducer:
    """A producer that signs the messages of tasks (celery_kit/base/signing.py), and leaves all else to `producer`."""

    def __init__(self, producer: KombuProducer, signer: "Signer") -> None:
        self._producer, self._signer = producer, signer

    def __getattr__(self, name: str) -> object:
        return getattr(self._producer, name)

    def publish(self, body: object, serializer: str | None = None, headers: Headers | None = None, **options: object) -> object:
        """Publish a message, as the producer does. Raises what that raises."""
        publish: Callback = self._producer.publish
        if "task" not in (headers or {}) and not (isinstance(body, dict) and "task" in body):  # an event, of which body is one
            return publish(body, serializer=serializer, headers=headers, **options)
        kind, encoding, data = dumps(body, serializer=serializer or self._producer.serializer)
        raw = data.encode(encoding) if isinstance(data, str) else data
        signed = self._signer.headers(headers or {}, options, raw, kind, encoding)
        return publish(raw, content_type=kind, content_encoding=encoding, headers=signed, **options)


class GivenProducer(KombuProducer):
    """kombu's producer, on a connection that a caller has given. It goes on, too, where the broker refuses to declare."""

    def _get_channel(self) -> StdChannel:
        channel: StdChannel = vars(KombuProducer)["_get_channel"](self)
        if hasattr(channel, "apart"):  # celery_kit/brokers/rabbitmq/transport.py
            channel.apart = True
        return channel

    channel = property(_get_channel, vars(KombuProducer)["_set_channel"])


class Producers(ProducerPool):
    """Producers that keep their connection and channel between messages."""

    if TYPE_CHECKING:

        def acquire(self, block: bool = False, timeout: float | None = None) -> Producer:
            """Take a producer. `timeout`: seconds to wait if all are in use and `block` is set. Raises LimitExceeded."""

    def release(self: Any, resource: KombuProducer) -> None:
        """Put a producer back into the pool, with its channel open."""
        Resource.release(self, resource)

    def prepare(self, p: KombuProducer) -> KombuProducer:
        """A producer of the pool, ready to publish."""
        producer = super().prepare(p)
        connection: Any = producer.connection
        if not connection.connected:  # it is known to be lost
            producer.revive(connection)
        return producer


class Connection(KombusConnection):
    """kombu's, with the kit's transports for their schemes. (The setting broker_transport would lose the `s` of rediss.)

    kombu's own table of schemes is not changed: the other apps of the process use it.
    """

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]  # as given
        if self.userid and self.password:  # those of a file may have changed since the settings were read
            self.userid, self.password = current(self.userid, self.password)

    def get_transport_cls(self) -> type[Transport]:
        """The kit's transport for the connection's scheme, or else kombu's."""
        known = transports().get(self.transport_cls) if isinstance(self.transport_cls, str) else None
        kind: type[Transport] = symbol_by_name(known) if known else super().get_transport_cls()
        return kind

    def Pool(self, limit: int | None = None, **options: object) -> "ConnectionPool":
        """A pool of at most `limit` connections like this one."""
        return ConnectionPool(self, limit, **options)

    def __eqhash__(self) -> Any:
        """kombu has one pool for all connections whose value is the same. A plain connection must not get this one's
        transport.
        """
        return HashedSeq(Connection, *super().__eqhash__())


class PooledConnection(Connection, KombusPooledConnection):
    """A connection of :class:`ConnectionPool`."""


class ConnectionPool(KombusConnectionPool):
    """kombu's, of :class:`Connection`."""

    def new(self) -> KombusConnection:
        """Another connection like the pool's."""
        make: Callable[..., PooledConnection] = PooledConnection
        return make(self, **dict(self.connection._info(resolve=False)))


AMQPBase: Any = patched(amqp.AMQP, "missing_queue_type")  # the stubs lack what is replaced here


class AMQP(AMQPBase):  # type: ignore[misc]
    """Celery's, with these connections and producers, and the brokers' own arguments of queues."""

    queues_cls = Queues
    Producer = GivenProducer

    def Connection(self, *args: object, transport_options: Options | None = None, **options: object) -> Connection:
        """A connection of this app, as kombu's. The given transport options win over the app's."""
        make: Callable[..., Connection] = Connection
        return make(*args, transport_options={**own_options(self.app.conf), **(transport_options or {})}, **options)

    BrokerConnection = Connection

    def Queues(self, *args: object, **options: object) -> Queues:
        """The app's table of queues, as Celery's; of one version's with the setting queue_version."""
        found: Queues = super().Queues(*args, **options)
        if version := self.app.conf.get("queue_version"):
            found.name_after(version)
        return found

    def Router(self, queues: object = None, create_missing: bool | None = None) -> object:
        """The app's router, as Celery's."""
        if not self.app.conf.get("queue_version"):
            return super().Router(queues, create_missing)
        missing = self.app.either("task_create_missing_queues", create_missing)
        return Router(self.routes, queues or self.queues, missing, app=self.app)

    @cached_property
    def send_task_message(self) -> Callback:
        """Celery's, with the headers of base/correlation.py, the exchanges of fixes/broadcast.py, and maybe a signature."""
        send, signer = self._create_task_sender(), security.signer(self.app)

        def send_task_message(
            producer: KombuProducer, name: str, message: task_message, headers: Headers | None = None, **options: Any
        ) -> object:
            if options.get("declare") is None and needed("broadcast"):
                queue = options.get("queue")
                queue = self.queues[queue] if isinstance(queue, str) else queue
                if known := broadcast.exchanges(self.queues.values(), queue, options.get("exchange")):
                    options["declare"] = known
            to = SigningProducer(producer, signer) if signer else producer
            return send(to, name, message, headers=correlation.named(headers), **options)

        return send_task_message

    @property
    def producer_pool(self: Any) -> Producers:
        """The producers of this process."""
        if self._producer_pool is None:
            conf = self.app.conf
            # Connecting is tried once at a time: the producer retries.
            connection = self.app.connection_for_write(transport_options={"max_retries": 0})
            broker = room(conf.broker_write_url)
            timeout = float(conf.get("publish_timeout", Producer.publish_timeout))
            more: Options = {"publish_timeout": timeout, "broker_timeout": timeout / max(1, len(connection.alt))}
            for name in ("like", "explain"):
                if step := getattr(broker, name, None):
                    more[name] = staticmethod(step)
            limit = self.app.pool.limit  # reading it also has Celery drop this pool in a forked child
            self._producer_pool = Producers(
                connection.Pool(limit=limit), limit=limit, Producer=type("Producer", (Producer,), more)
            )
        pool: Producers = self._producer_pool
        return pool
