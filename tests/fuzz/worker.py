"""A worker's way of deciding about a message, in this process, from the bytes that arrive: without a server.

What is decided is real: kombu's and the kit's transports read the bytes, and the kit's gate, Celery's handlers and strategies,
and the kit's fast path decide. Sockets are stubs; the pool runs the task at once, and what that sends is dropped.
"""

from __future__ import annotations

import logging
import struct
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer
from kombu import Consumer as KombusConsumer
from kombu import Producer
from kombu.transport import memory, virtual
from redis._parsers import encoders

from celery_kit import Kit
from celery_kit.brokers.rabbitmq import transport as rabbitmq
from celery_kit.brokers.rabbitmq.dead import RabbitmqDeadLetters
from celery_kit.brokers.rabbitmq.frames_in import frame_handler
from celery_kit.brokers.rabbitmq.read_ahead import BODY, HEADER, METHOD
from celery_kit.brokers.redis import transport as redis
from celery_kit.brokers.redis.dead import RedisDeadLetters, addressed, payload_of
from celery_kit.brokers.redis.fetch import Fetcher
from celery_kit.engine import fast_path
from celery_kit.engine.commit import REQUEST
from celery_kit.fixes.compression import bounded
from celery_kit.worker.dead_lettering import DeadLettering
from tests.fuzz.inputs import QUEUE, TASK, parts

#: The delivery tag of every message.
TAG = 5
#: What may become of a message: the pool gets it, its ETA is waited for, it had expired, or it is a dead letter.
RUNS, WAITS, EXPIRED, DEAD = "runs", "waits", "expired", "dead"
ENGINES = ("fast", "plain")


class UndecidedError(Exception):
    """A message was neither accepted nor refused, or both, or not acknowledged."""


#: redis-py's encoding of what is sent. Raises an error for what it does not send.
encode: Callable[[object], object] = vars(encoders)["Encoder"]("utf-8", "strict", False).encode


class Anything:
    """A client or pipeline of a server that accepts everything it is sent. `done`: the names of its commands; `stored`:
    the arguments of those that store dead letters.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.stored: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def command(*args: object, **_: object) -> Any:
            for one in args:
                encode(one)
            self.done.append(name)
            self.stored += [args] if name == "hset" else []
            return set() if name == "smembers" else self

        return command

    def __enter__(self) -> Anything:
        return self

    def __exit__(self, *_: object) -> None: ...


def touch(*args: object, **kwargs: object) -> None:
    """The task that messages are for."""


class Worker(Consumer):
    """Celery's consumer with the kit's dead-lettering. `letters`: what stores dead letters on a broker."""

    def __init__(self, engine: str, letters: Any) -> None:
        bounded()
        self.app = app = Kit("hostile", set_as_current=False, broker="memory://", backend="cache+memory://")
        app.conf.task_acks_late = True
        task = app.task(name=TASK, Request=REQUEST, shared=False)(touch)
        app.finalize()
        self.hostname, self.connection_errors, self.channel_errors = "worker@here", (ConnectionError,), ()
        self.event_dispatcher: Any = None
        self.disable_rate_limits, self._maximum_prefetch_restored, self.restart_count = True, True, 0
        self.task_buckets: dict[str, Any] = {TASK: None}
        self.on_task_message: set[Any] = set()
        self.task_consumer = None
        self.pool: Any = SimpleNamespace(apply_async=self.apply, uses_semaphore=False)
        self.timer: Any = SimpleNamespace(call_at=self.wait)
        self.qos: Any = Anything()
        self.controller: Any = SimpleNamespace(state=state, _process_task=self.process, _quick_release=None)
        self.on_task_request = self.process
        self.happened: list[str] = []
        self.reasons: list[str] = []
        consumer: Any = self
        self.strategies = {TASK: fast_path.strategy(task, app, consumer)}
        self.fast_path = fast_path.handler(consumer) if engine == "fast" else None
        step: Any = DeadLettering.__new__(DeadLettering)
        step.limit, step.connection_errors, step.letters = 5, self.connection_errors, SimpleNamespace(
            put=lambda _, message, letter: self.put(letters, message, letter), queue_of=letters.queue_of
        )  # fmt: skip
        for name, reason in (("decode_error", "cannot be decoded"), ("unknown_message", "is no task"),
                             ("unknown_task", "no such task"), ("invalid_task", "is not accepted")):  # fmt: skip
            setattr(self, f"on_{name}", step.storing_first(self, getattr(self, f"on_{name}"), reason))
        handler = step.guarded(self, self.create_task_handler)()
        step.guard_the_pool(self)
        # kombu's, between a transport and the handler; the kit's apps accept JSON alone.
        self.receive = KombusConsumer._receive_callback.__get__(
            SimpleNamespace(accept={"application/json"}, on_message=handler, channel=None)
        )
        self.receive.__self__.on_decode_error = self.on_decode_error

    def call_soon_ack(self, function: Callable[..., object], *args: object) -> None:
        """Celery's, at once."""
        function(*args)

    def process(self, request: Any) -> None:
        """Hand a task to the pool, as Celery's worker does."""
        request.execute_using_pool(self.pool)

    def apply(self, target: Any, args: Any = (), callback: Any = None, accept_callback: Any = None, **_: object) -> None:
        """The pool's: it runs the task, as solo does. What it sends is dropped."""
        self.happened.append(RUNS)
        try:
            accept_callback(1, 1.0)
            callback(target(*args, **({} if len(args) == 1 else {"app": self.app})))  # Celery's takes the current one
        except Exception:
            self.happened.append(f"its run raises: {traceback.format_exc()}")
        memory.Channel.queues.clear()

    def wait(self, *_: object, **__: object) -> object:
        """The timer's."""
        self.happened.append(WAITS)
        return None

    def put(self, letters: Any, message: Any, letter: Any) -> None:
        """Store a dead letter."""
        letters.put(SimpleNamespace(producer_or_acquire=self.producer), message, letter)
        self.happened.append(DEAD)
        self.reasons.append(letter.reason)

    @contextmanager
    def producer(self) -> Iterator[Any]:
        """One whose channel encodes what it publishes, and sends it nowhere."""
        channel: Any = object.__new__(rabbitmq.Channel)
        channel.connection = SimpleNamespace(client=SimpleNamespace(declared_entities=set()))
        channel.is_open = True
        channel.basic_publish = lambda message, **_: message._serialize_properties()
        real = Producer(channel, auto_declare=False)

        def publish(body: bytes, retry: bool, retry_policy: object, **options: Any) -> None:
            real.publish(body, **options)

        yield SimpleNamespace(publish=publish)


class Redis:
    """The item of a list, as kombu's transport or the kit's fetch gets it."""

    def __init__(self, engine: str) -> None:
        self.worker, self.engine = Worker(engine, RedisDeadLetters()), engine
        self.channel: Any = object.__new__(redis.Channel)
        self.server = Anything()
        qos = SimpleNamespace(
            ack=self.settle, reject=self.settle, _delivered={}, _remove_from_indices=self.server.remove, recorded=""
        )
        self.channel.__dict__.update(
            connection=SimpleNamespace(_deliver=self.deliver, state=SimpleNamespace(exchanges={})), engine=engine,
            _qos=qos, conn_or_acquire=self.connect, closed=True, global_keyprefix="", _pool=None, _async_pool=None,
            unacked_key="unacked", unacked_index_key="unacked_index", connection_errors=(ConnectionError,),
            priority_steps=list(range(9, -1, -1)),
            exchange_types={name: kind(self.channel) for name, kind in vars(virtual.Channel)["exchange_types"].items()},
        )  # fmt: skip
        vars(self.worker.receive.__self__)["channel"] = self.channel
        self.fetcher = object.__new__(Fetcher)
        vars(self.fetcher).update(channel=self.channel, _odd={}, acknowledge=self.settle)
        self.settled = 0

    @contextmanager
    def connect(self, *_: object) -> Iterator[Anything]:
        yield self.server

    def settle(self, *_: object) -> None:
        """A message is acknowledged."""
        self.settled += 1

    def deliver(self, payload: Any, queue: str) -> None:
        """kombu's, to this worker."""
        message = self.channel.Message(payload, channel=self.channel)
        self.server.record(message.delivery_tag)
        self.worker.receive(payload)

    def take(self, item: bytes) -> str:
        """Decide about an item. Returns what becomes of it. Raises UndecidedError."""
        self.worker.happened.clear()
        self.worker.reasons.clear()
        self.server.done.clear()
        self.server.stored.clear()
        self.settled = 0
        if self.engine == "fast" and self.is_recorded(item):
            self.fetcher._deliver(QUEUE, item)
        else:
            self.channel.deliver_raw(item, QUEUE)
        happened = list(self.worker.happened)
        if RUNS in happened:  # its worker may be lost, or stop: then it is requeued, or a dead letter
            self.requeue(payload_of(item))
            if not {"rpush", "hset"} & set(self.server.done):
                happened.append("it cannot be requeued")
            return outcome(happened, self.settled, True)
        if "eval" in self.server.done:  # celery_kit/brokers/redis/delayed.py
            happened.append(WAITS)
        if "hset" in self.server.done and DEAD not in happened:  # an item that is no message
            happened.append(DEAD)
        return outcome(happened, self.settled, self.server.done.count("hset") <= 1)

    def requeue(self, payload: Any) -> None:
        """Requeue a message."""
        to = addressed(payload, QUEUE)["properties"]["delivery_info"]
        self.channel._do_restore_message(payload, to["exchange"], to["routing_key"], self.server)

    def is_recorded(self, item: bytes) -> bool:
        """Whether fetch.lua finds its tag and its address, roughly."""
        try:
            found = payload_of(item)["properties"]
            to = found["delivery_info"]
            return all(type(one) is str for one in (found["delivery_tag"], to["exchange"], to["routing_key"]))
        except Exception:
            return False


class Rabbitmq:
    """A message's properties, as AMQP encodes them, and its body; both as py-amqp or the kit's frames get them."""

    def __init__(self, engine: str) -> None:
        self.worker = Worker(engine, RabbitmqDeadLetters())
        self.channel: Any = object.__new__(rabbitmq.Channel)
        given = {"callbacks": {"tag": self.worker.receive}, "basic_ack": self.settle, "basic_reject": self.settle}
        for name, value in {"channel_id": 1, "is_closing": False, "auto_decode": True, "_pending": {}, **given}.items():
            setattr(self.channel, name, value)
        self.channel.no_ack_consumers = set()
        vars(self.worker.receive.__self__)["channel"] = self.channel
        connection: Any = SimpleNamespace(bytes_recv=0, channels={1: self.channel})
        self.on_frame = frame_handler(connection, self.other)
        self.settled = 0

    def settle(self, *_: object, **__: object) -> None:
        """A message is acknowledged."""
        self.settled += 1

    def other(self, *_: object) -> None:
        """The callback for other methods than a delivery."""
        raise UndecidedError("the delivery was no delivery")

    def take(self, data: bytes) -> str:
        """Decide about a message. Returns what becomes of it. Raises UndecidedError."""
        properties, body = parts(data)
        self.worker.happened.clear()
        self.worker.reasons.clear()
        self.settled = 0
        about = b"\x03tag" + struct.pack(">QB", TAG, 0) + b"\x00" + bytes([len(QUEUE)]) + QUEUE.encode()
        self.on_frame((METHOD, 1, struct.pack(">HH", 60, 60) + about))
        self.on_frame((HEADER, 1, struct.pack(">HHQ", 60, 0, len(body)) + properties))
        if body:
            self.on_frame((BODY, 1, body))
        return outcome(self.worker.happened, self.settled, True)


def outcome(happened: list[str], settled: int, once: bool) -> str:
    """What has become of a message. Raises UndecidedError if that is not one thing."""
    what = set(happened) or {EXPIRED if settled else "nothing"}
    state.reset_state()
    if len(happened) > 1 or what == {"nothing"} or not once:
        raise UndecidedError(f"acknowledged {settled} times, {', '.join(happened)}")
    (one,) = what
    return one


BROKERS: Mapping[str, Callable[[str], Any]] = {"redis": Redis, "rabbitmq": Rabbitmq}


def quiet() -> None:
    """Have this process log nothing of the messages that it decides about: each refusal is a line."""
    for name in ("celery", "celery_kit"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
