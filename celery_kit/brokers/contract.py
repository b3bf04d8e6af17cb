"""What every broker's room supplies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from celery_kit.base.capabilities import Limits
from celery_kit.base.messages import Part

if TYPE_CHECKING:
    from celery_kit.base.choices import Choices

Environ = Mapping[str, str]


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
    settings: Callable[["Choices"], dict[str, Any]]
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
    #: By scheme, the transport that takes the place of kombu's own, where there is one.
    transports: Mapping[str, str] = field(default_factory=dict)
    #: Tasks with an ETA wait in the broker, not in a worker.
    delays_tasks: bool = False
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


def schemes_of(url: str | Sequence[str] | None) -> set[str]:
    """What the addresses of a setting begin with: one, several with a semicolon between them, or a list, as kombu has it."""
    texts = [url] if isinstance(url, str) else url or []
    each = [one for text in texts for one in text.split(";")]
    return {one.partition(":")[0].partition("+")[0] for one in each if one == each[0] or "://" in one}
