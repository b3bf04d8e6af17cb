"""What every broker's room supplies."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from kombu.exceptions import OperationalError

from celery_kit.base.capabilities import Limits
from celery_kit.base.correlation import SENT

if TYPE_CHECKING:
    from celery_kit.profile import Profile

Environ = Mapping[str, str]


#: The queue, or the key, that holds what was set aside.
DEAD = "celery.dead"
#: The header that counts how often a message came back; RabbitMQ's own name for it, which the kit uses on every broker.
DELIVERIES = "x-delivery-count"
#: Where the worker writes what it knows of a message that it sets aside, in its headers.
NOTE = "celery-kit-dead"

Action = Literal["keep", "retry", "drop"]


@dataclass(frozen=True)
class DeadLetter:
    """A message that was set aside. `when`: ISO 8601, UTC. `deliveries`: how often a worker got it.

    `id`: the task's; of a message that names none the first 12 digits of its SHA-1. Two letters may share an id.
    """

    id: str
    task: str
    queue: str
    reason: str
    when: str
    deliveries: int


class DeadLetters(Protocol):
    """Where a broker keeps what was set aside, until somebody sends it back or drops it."""

    def prepare(self, app: Any) -> None:
        """Make what it takes; a worker calls it at its start."""

    def put(self, app: Any, message: Any, letter: DeadLetter) -> None:
        """Keep a message, whole: it is safe when this returns, and the caller acknowledges it. Raises as publishing does."""

    def queue_of(self, message: Any, by_tag: Mapping[str, str]) -> str:
        """The queue that a message came from. `by_tag`: the consumer's queues, by consumer tag."""

    def each(self, app: Any, decide: Callable[[DeadLetter], Action]) -> None:
        """Show every letter to `decide` and do what it says. One that cannot be sent back stays, and its error is raised."""


class RefusedError(OperationalError):
    """The broker answered, and did not take the message: a full queue, or a server that has no room. Trying again is no use."""


class UnroutedError(OperationalError):
    """The broker has confirmed a message, and given it back: there is no queue for it, or none yet."""


class UnconfirmedError(OperationalError):
    """Messages that the broker has not confirmed: `ids`. Any of them may have arrived all the same."""

    def __init__(self, why: str, ids: Collection[str]) -> None:
        super().__init__(why)
        self.ids = ids


@dataclass(frozen=True, eq=False)
class Sample:
    """A message just as Celery publishes it, its body serialized, to make others like it from."""

    id: str
    body: bytes
    priority: int | None
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    mandatory: bool


class Part(NamedTuple):
    """What a message has of its own; all else is its sample's. An id that stands in the sample becomes this one.

    `sent`: its header of that name, in seconds since the epoch.
    """

    sample: Sample
    id: str
    body: bytes
    argsrepr: str
    kwargsrepr: str
    sent: float
    reply_to: str


def message_of(channel: Any, part: Part) -> Any:
    """The message, as a channel of kombu's makes it."""
    sample = part.sample
    headers = {name: part.id if value == sample.id else value for name, value in sample.headers.items()}
    headers["argsrepr"], headers["kwargsrepr"] = part.argsrepr, part.kwargsrepr
    if SENT in headers:
        headers[SENT] = part.sent
    properties = {**sample.properties, "correlation_id": part.id, "reply_to": part.reply_to}
    return channel.prepare_message(
        part.body, sample.priority, sample.content_type, sample.content_encoding, headers, properties
    )


class Bulk(Protocol):
    """How a broker takes many messages at once."""

    def __init__(self, connection: Any, patience: float) -> None: ...

    def send(self, parts: Sequence[Part]) -> None:
        """Publish, and wait for the broker's word that it has all of them. Raises UnconfirmedError where that fails."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Broker:
    """A row of the table of brokers."""

    #: What BROKER= says.
    name: str
    #: What its URLs begin with.
    schemes: tuple[str, ...]
    #: Where it is when CELERY_BROKER_URL does not say.
    url: Callable[[Environ], str]
    #: Celery settings that it alone needs.
    settings: Callable[["Profile"], dict[str, Any]]
    #: Where it keeps what was set aside; None: nowhere.
    dead_letters: DeadLetters | None
    #: Where the function stands that asks the server what it does now: facts(app, connection, environ) gives a `facts.Server`.
    facts: str | None
    #: Its stack; None where it runs without containers.
    compose_file: str | None = None
    #: The Redis results server that comes with it, where one does.
    results_url: Callable[[Environ], str] | None = None
    #: By feature; and by pool or backend and feature, what only shows together with that one.
    limits: Limits = field(default_factory=dict)
    pool_limits: Mapping[str, Limits] = field(default_factory=dict)
    backend_limits: Mapping[str, Limits] = field(default_factory=dict)
    #: The kombu transport that takes the place of kombu's own for its schemes, where there is one.
    transport: str | None = None
    #: By scheme, the transport of ENGINE=fast.
    fast_transports: Mapping[str, str] = field(default_factory=dict)
    #: Tasks with an ETA wait in the broker, not in a worker.
    delays_tasks: bool = False
    #: bound(channel, seconds) has a producer's channel give up waiting for an answer, and say why; kombu's would wait for ever.
    bound: Callable[[Any, float], None] | None = None
    #: let_go(connection) closes, in a forked child, its end of the parent's sockets, without a word to the server.
    let_go: Callable[[Any], None] = lambda connection: None
    #: How it takes many messages at once, for `send_many`.
    bulk: type[Bulk] | None = None
    #: like(channel, part, seconds) publishes one message that is like its sample, and returns once the broker has it.
    like: Callable[[Any, Part, float], None] | None = None
    #: explain(error): one line on an answer that a declaration would get again and again, and what mends it; None for others.
    explain: Callable[[BaseException], str | None] | None = None
    #: What its own variables begin with, and by port of its container the one that says where that is published.
    variables: str | None = None
    ports: Mapping[int, str] = field(default_factory=dict)
