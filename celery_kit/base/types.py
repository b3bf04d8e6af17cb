"""Types of what Celery, kombu and py-amqp hand to the kit, for annotations.

Where their stubs describe an object well enough, annotate with the class itself: `celery.Celery` for an app,
`celery.app.utils.Settings` for its `conf`, `celery.app.task.Context`, `celery.result.AsyncResult`, `kombu.Producer`,
`celery.concurrency.base.BasePool`, `kombu.Queue`, `kombu.asynchronous.hub.Hub`, `billiard.einfo.ExceptionInfo`.
The protocols below describe objects whose stubs lack what the kit uses; each has the members in use and no others.

A value that is only handed on is an `object`. So are the keyword arguments that a signal's receiver does not read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping, MutableMapping, MutableSet, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from datetime import datetime

    from celery import Celery, Task
    from celery.app.task import Context
    from celery.bootsteps import Blueprint
    from celery.result import AsyncResult
    from kombu import Queue
    from kombu.asynchronous.hub import Hub
    from kombu.transport.base import Transport

#: A function that is called and whose value nobody reads, or is handed on unread.
Callback: TypeAlias = Callable[..., object]
#: Celery settings, or options of a connection, by name.
Options: TypeAlias = dict[str, object]
#: A message's headers or properties as another process wrote them: check a value's type before relying on it.
Headers: TypeAlias = dict[str, Any]
#: What a pool's `apply_async` calls back with: whether the task failed, its value or its error, and its runtime in seconds.
FailedValueRuntime: TypeAlias = tuple[int, object, float | None]
if TYPE_CHECKING:
    #: A task, whatever it takes and returns.
    AnyTask: TypeAlias = Task[..., object]
    #: The result of a task, whatever its value.
    AnyResult: TypeAlias = AsyncResult[object]
    #: A value as `json.loads` returns it.
    Json: TypeAlias = str | int | float | bool | Sequence["Json"] | Mapping[str, "Json"] | None
else:  # values, so that `AnyTask | None` needs no quotes, and this module does not import Celery
    AnyTask = AnyResult = Json = object


class Message(Protocol):
    """A delivery, as a consumer gets it: kombu.message.Message, of which the stubs know text bodies and headers alone."""

    body: bytes | str
    headers: Headers
    properties: Headers
    delivery_info: Headers
    delivery_tag: int | str
    content_type: str
    content_encoding: str
    channel: Channel
    #: Methods of kombu's class, which a caller may replace on one message.
    ack: Callback
    reject_log_error: Callback
    ack_log_error: Callback

    #: Content types that the consumer takes, None for all; errors of reading it; and what `payload` returns once it is read.
    accept: Container[str] | None
    errors: Sequence[object] | None
    _decoded_cache: object

    @property
    def acknowledged(self) -> bool:
        """It was acknowledged, rejected or requeued."""

    @property
    def payload(self) -> object:
        """The decoded body. Raises what its serializer raises."""


class Declared(Protocol):
    """The answer to a queue's declaration: amqp.protocol.queue_declare_ok_t."""

    queue: str
    message_count: int
    consumer_count: int


class Channel(Protocol):
    """What every transport's channel can do."""

    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]

    def __enter__(self) -> Channel: ...

    def __exit__(self, *exception: object) -> None: ...

    def close(self) -> None: ...

    def queue_declare(self, queue: str, passive: bool = False, **options: object) -> Declared: ...

    def queue_bind(self, queue: str, exchange: str, routing_key: str, **options: object) -> object: ...

    def prepare_message(
        self,
        body: bytes | str,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, object] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> object:
        """The transport's own form of a message, for `basic_publish`."""

    def basic_publish(self, message: object, exchange: str, routing_key: str, **options: object) -> object: ...

    def basic_get(self, queue: str, no_ack: bool = False) -> object: ...

    def basic_ack(self, delivery_tag: int | str, multiple: bool = False) -> object: ...

    def basic_reject(self, delivery_tag: int | str, requeue: bool = False) -> object: ...


class Connection(Protocol):
    """kombu.Connection. Annotate what `channel()` gives as :class:`Channel`; the stubs have a class without methods there."""

    alt: list[str]
    transport_options: dict[str, Any] | None
    hostname: str | None
    userid: str | None
    password: str | None
    virtual_host: str
    declared_entities: Any

    def channel(self) -> Any: ...

    def clone(self, **options: Any) -> Connection: ...

    def connect(self) -> object:
        """Connect, unless it is connected, by one attempt. Raises the connection's errors."""

    def collect(self, socket_timeout: float | None = None) -> None:
        """Close the sockets, and send nothing to the server. `socket_timeout`: seconds."""

    def release(self) -> None:
        """Close it, or give it back to its pool."""

    def drain_events(self, *, timeout: float = ...) -> None:
        """Wait for one event, for `timeout` seconds at most. Raises TimeoutError, or one of the transport's errors."""

    def heartbeat_check(self, rate: int = ...) -> None: ...
    def maybe_switch_next(self) -> None: ...

    def get_heartbeat_interval(self) -> float:
        """Seconds; 0 without heartbeats."""

    def as_uri(self) -> str:
        """Its URL, without the password."""

    @property
    def supports_heartbeats(self) -> bool: ...

    @property
    def transport(self) -> Transport: ...

    @property
    def connection(self) -> object:
        """The transport's own connection."""

    @property
    def default_channel(self) -> Any: ...

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]: ...

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]: ...


class TimerEntry(Protocol):
    """A planned call."""

    def cancel(self) -> None: ...


class Timer(Protocol):
    """A worker's timer: that of kombu's event loop, of a thread, or of a green pool. Times are in seconds."""

    @property
    def queue(self) -> Sequence[object]: ...

    def call_after(self, secs: float, fun: Callback, args: tuple[Any, ...] = ...) -> Any: ...

    def call_repeatedly(self, secs: float, fun: Callback, args: tuple[Any, ...] = ...) -> Any: ...

    def cancel(self, tref: Any) -> None: ...


class EventDispatcher(Protocol):
    """celery.events.EventDispatcher, of a worker."""

    connection: Connection
    enabled: bool
    #: Held while the connection is written or read.
    mutex: AbstractContextManager[Any]
    #: Groups of events that are sent; all if it is empty.
    groups: set[str] | None

    def send(self, type: str, **fields: object) -> object: ...

    def flush(self) -> None: ...

    def collect(self, timer: Timer) -> None: ...


class Prefetch(Protocol):
    """A consumer's prefetch count (kombu.common.QoS): `value` is what it should be, 0 without a limit, `prev` what was sent."""

    value: int
    prev: int

    def update(self) -> object: ...


class TaskConsumer(Protocol):
    """The kombu.Consumer of a worker's task queues."""

    on_message: Callable[[Message], object]
    queues: Sequence[Queue]
    #: Consumer tags, by queue name.
    _active_tags: dict[str, str]
    consume: Callable[[], None]
    cancel: Callable[[], None]
    add_queue: Callable[[Queue], object]
    cancel_by_queue: Callable[[str], None]


class WorkerRequest(Protocol):
    """A task that a worker holds: celery.worker.request.Request."""

    id: str
    name: str
    message: Message
    task: AnyTask
    eventer: EventDispatcher | None
    acknowledged: bool
    #: Soft and hard, in seconds.
    time_limits: tuple[float | None, float | None]
    expires: datetime | None
    eta: datetime | None
    store_errors: bool
    #: The message's headers, and where it was delivered from.
    request_dict: Headers
    delivery_info: Headers
    #: The task's context, in the shape that result backends take.
    _context: Context

    def _announce_revoked(self, reason: str, terminated: bool, signum: str | int | None, expired: bool) -> None: ...

    def acknowledge(self) -> None: ...

    def reject(self, requeue: bool = False) -> None: ...

    #: Terminates the task; the pool of threads replaces it.
    terminate: Callback
    #: REVOKED was announced.
    _already_revoked: bool

    def revoked(self) -> bool:
        """Whether the task is revoked or expired. Announces it if so."""


class ResultBackend(Protocol):
    """A result backend that waits for messages about results: those of rpc and Redis.

    Its handlers stand here as attributes, because the kit replaces them on one object.
    """

    app: Celery
    url: str | None
    accept: object
    #: Where its replies come to, for rpc.
    oid: str
    thread_safe: bool
    #: celery.backends.asynchronous.BaseResultConsumer.
    result_consumer: Any
    #: Results that `get()` waits for, by task id: strong and weak references.
    _pending_results: Sequence[MutableMapping[str, Any]]
    _pending_messages: Any
    #: Results that were looked up, by task id.
    _cache: Any
    add_pending_result: Callback
    add_pending_results: Callable[[Sequence[object]], object]
    remove_pending_result: Callback
    on_task_call: Callback


class WorkerState(Protocol):
    """The module celery.worker.state: what this worker has taken and runs."""

    requests: dict[str, WorkerRequest]
    reserved_requests: MutableSet[WorkerRequest]
    active_requests: MutableSet[WorkerRequest]
    #: Tasks that began, by name, and all of them.
    total_count: dict[str, int]
    all_total_count: list[int]
    should_stop: int | bool | None
    should_terminate: int | bool | None

    def task_ready(self, request: WorkerRequest) -> None:
        """The request is over."""


class Worker(Protocol):
    """celery.worker.WorkController, or the program's celery.apps.worker.Worker."""

    app: Celery
    hostname: str
    pool: Any
    pool_cls: str | type
    concurrency: int | str
    consumer: WorkerConsumer
    blueprint: Blueprint
    state: WorkerState
    timer: Timer
    hub: Hub | None
    _process_task: Callable[[WorkerRequest], object]


class WorkerConsumer(Protocol):
    """A worker's consumer, the `parent` of its bootsteps: celery.worker.consumer.Consumer.

    Its handlers stand here as attributes, because bootsteps wrap them.
    """

    app: Celery
    hostname: str
    #: The pool's own class: celery.concurrency.base.BasePool.
    pool: Any
    hub: EventLoop | None
    timer: Timer
    controller: Worker
    connection: Connection
    connection_errors: tuple[type[BaseException], ...]
    channel_errors: tuple[type[BaseException], ...]
    task_consumer: TaskConsumer | None  # None before the step Tasks
    add_task_queue: Callback
    paused: frozenset[str]  # its queues that are: celery_kit/worker/pausing.py
    event_dispatcher: EventDispatcher
    qos: Prefetch
    #: By task, the token bucket of its rate limit.
    task_buckets: MutableMapping[str, Any]
    #: By task, what takes a message of it.
    strategies: dict[str, Callback]
    blueprint: Blueprint
    loop: Callback
    create_task_handler: Callable[..., Callable[[Message], object]]
    on_connection_error_after_connected: Callable[[Exception], None]
    on_decode_error: Callback
    on_unknown_message: Callback
    on_unknown_task: Callback
    on_invalid_task: Callback
    on_task_request: Callback
    on_ready: Callable[[], None]
    perform_pending_operations: Callable[[], None]
    call_soon: Callback
    disable_rate_limits: bool
    #: False while the prefetch count is being restored after a lost connection.
    _maximum_prefetch_restored: bool
    #: Called with each request, such as a step's `task_message`.
    on_task_message: Collection[Callback]
    #: Takes a message if it may take the fast path (celery_kit/engine/fast_path.py). A worker of ENGINE=fast has it.
    fast_path: Callable[[Message], bool]
    shutdown: Callable[[], None]
    #: Of its AMQP connection: the interval in seconds, and how often it is checked in that time.
    amqheartbeat: float | None
    amqheartbeat_rate: int

    def connection_for_read(self, heartbeat: float | None = None) -> AbstractContextManager[Connection]:
        """Open another connection, with heartbeats of so many seconds."""


class EventLoop(Protocol):
    """A worker's event loop: kombu.asynchronous.hub.Hub, of which the stubs say that `on_tick` is a list."""

    on_tick: MutableSet[Callback]  # called when the loop is about to wait
    #: Writes jobs to children, by the file descriptors of their pipes.
    consolidate_callback: Callable[[Sequence[int]], object]

    def add_reader(self, fds: object, callback: Callback | Iterator[None], *args: object) -> None:
        """Call `callback(*args)`, or continue the generator, when a descriptor can be read."""

    def remove_reader(self, fd: object) -> None: ...

    def call_soon(self, callback: Callback, *args: object) -> object: ...


class Control(Protocol):
    """What a remote control command gets as its first argument."""

    app: Celery
    hostname: str
    consumer: WorkerConsumer
