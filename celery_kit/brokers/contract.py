"""What the module of every broker supplies."""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict
from urllib.parse import urlencode

from kombu.utils.imports import symbol_by_name

from celery_kit.base.capabilities import Limits
from celery_kit.base.choices import secure
from celery_kit.base.messages import Part
from celery_kit.base.refusals import refuse
from celery_kit.base.types import Connection, Headers, Message, Options

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.choices import Choices

#: The process's environment, or a part of it.
Environ = Mapping[str, str]

#: What to do with a dead letter: leave it, send it back to its queue, or delete it.
Action = Literal["keep", "retry", "drop"]


#: The kinds of dead letters: a task that failed; a message that was delivered too often, cannot be read, names a task that
#: nobody has, or was rejected by its task.
KINDS = ("failed", "poison", "malformed", "unknown", "rejected", "unsigned")
#: How the reason of a letter begins whose record names no kind: RabbitMQ's own, and those of earlier versions of the kit.
REASONS = {"delivered ": "poison", "no such task": "unknown", "rejected ": "rejected", "signature ": "unsigned"}
#: The reason of a message that was acknowledged before: sent back, it stays refused.
REPLAYED = "signature used before: a message with it was acknowledged"


#: Who a process is on the servers of a stack: deploy/brokers/ has what each may do.
ROLES = ("producer", "worker", "beat", "monitor", "operator", "admin")
#: The files that accounts were read from, by the user and the password that were in them.
_FILES: dict[tuple[str, str], Path] = {}


def account(environ: Environ, role: str) -> tuple[str, str]:
    """The user and the password on a stack's server. `role`: BROKER or RESULTS.

    BROKER_PASSWORD, or what is in the file BROKER_PASSWORD_FILE: a password, and on a second line its user; without one, `kit`.
    An empty password without both. Refuses a file that cannot be read (one line, exit code 2).
    """
    given, file = environ.get(f"{role}_PASSWORD"), environ.get(f"{role}_PASSWORD_FILE")
    if given or not file:
        return _parts(given or "")
    try:
        return _read(Path(file))
    except (OSError, ValueError) as error:
        refuse(f"{role}_PASSWORD_FILE={file} cannot be read: {getattr(error, 'strerror', None) or error}")


def _read(file: Path) -> tuple[str, str]:
    found = _parts(file.read_text())
    _FILES[found] = file
    return found


def _parts(text: str) -> tuple[str, str]:
    secret, _, user = text.strip().partition("\n")
    return user.strip() or "kit", secret.strip()


def is_of_a_file(user: str, secret: str) -> bool:
    """Whether this user and password were read from a file, which may have others later."""
    return (user, secret) in _FILES


def current(user: str, secret: str) -> tuple[str, str]:
    """The account to connect with: what the file has now that this user and password were read from; without one, they."""
    with suppress(KeyError, OSError, ValueError):  # of a file that is gone, the former account is tried
        return _read(_FILES[user, secret])
    return user, secret


def tls(environ: Environ) -> str:
    """What the URL of a stack's server ends with if SECURE is set: whom to trust, and what to show. Empty without it.

    The server's certificate must be of an authority in `ca.pem` of the folder TLS_FOLDER, and for the server's name.
    With SECURE=mutual, `client.pem` of that folder is shown. Refuses a file that is missing (one line, exit code 2).
    """
    if not (kind := secure(environ)):
        return ""
    folder = Path(environ.get("TLS_FOLDER") or "/tls")
    files = {"ssl_ca_certs": folder / "ca.pem"}
    if kind == "mutual":
        files |= dict.fromkeys(("ssl_certfile", "ssl_keyfile"), folder / "client.pem")
    for file in files.values():
        if not file.is_file():
            refuse(f"SECURE={kind} needs {file}, which is not there; TLS_FOLDER names its folder, 'make certificates' makes it")
    given = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"} | {name: str(file) for name, file in files.items()}
    return f"?{urlencode(given, safe='/')}"


@dataclass(frozen=True)
class DeadLetter:
    """A dead-lettered message. `when`: ISO 8601, UTC. `deliveries`: how often a worker got it, without being acknowledged.

    `id`: the task's, or the first 12 digits of the body's SHA-1 for a message without an id. Two letters may share an id.
    `kind`: one of :data:`KINDS`. `reason`: of a failed task its exception. `attempts`: how often the task was tried, by its
    retries; 0 if that is not known, as the others.
    """

    id: str
    task: str
    queue: str
    reason: str
    when: str
    deliveries: int
    kind: str = ""
    attempts: int = 0
    worker: str = ""
    traceback: str = ""

    def __post_init__(self) -> None:
        numbers = ("deliveries", "attempts")
        for name in (one.name for one in fields(self)):
            if type(getattr(self, name)) is not (int if name in numbers else str):
                raise TypeError(f"its {name} is not {'a number' if name in numbers else 'a text'}")
        if not self.kind:
            kind = next((kind for begin, kind in REASONS.items() if self.reason.startswith(begin)), "malformed")
            object.__setattr__(self, "kind", kind)


def letter_from(record: Headers) -> DeadLetter:
    """The letter of a record, also of an earlier or a later version. Raises TypeError if it is none."""
    names = {field.name for field in fields(DeadLetter)}
    return DeadLetter(**{name: value for name, value in record.items() if name in names})


def moment(at: datetime | None = None) -> str:
    """The time `at` (UTC), or now, as `DeadLetter.when` has it."""
    return (at or datetime.now(UTC)).isoformat(timespec="seconds")


def name_of(body: bytes) -> str:
    """The id of a message without one: the first 12 digits of the SHA-1 of its body."""
    return hashlib.sha1(body).hexdigest()[:12]


def unreadable(id: str, error: Exception, when: str) -> DeadLetter:
    """A letter for a record that `error` says is not one."""
    return DeadLetter(id, "", "", f"its record cannot be read: {type(error).__name__}: {error}", when, 0)


class DeadLetters(Protocol):
    """Where a broker stores dead letters, until somebody sends them back or drops them."""

    def prepare(self, app: "Celery") -> None:
        """Declare the queues that it needs. A worker calls it when it starts."""

    def put(self, app: "Celery", message: Message, letter: DeadLetter) -> None:
        """Store a whole message, safely before it returns. The caller then acknowledges it. Raises what publishing raises."""

    def queue_of(self, message: Message, by_tag: Mapping[str, str]) -> str:
        """The queue that a message came from. `by_tag`: the consumer's queues, by consumer tag."""

    def each(
        self, app: "Celery", decide: Callable[[DeadLetter], Action], done: Callable[[int, int], object] = lambda *_: None
    ) -> None:
        """Call `decide` for every letter, oldest first, then do what it returned. A letter is sent back, and removed, in one
        step. One that cannot be sent back stays; its error is raised at the end.

        `done(number, total)`: called with how many were sent back or dropped, of how many.
        """

    def failed(self, app: "Celery", connection: Connection) -> "FailedTasks":
        """What stores failed tasks over a connection. Raises the connection's errors."""


class Pauses(Protocol):
    """Which queues are paused. The broker stores it, so that it survives a restart of everything.

    Each method raises the errors of the connection.
    """

    def fits(self, queue: str) -> bool:
        """Whether the broker can note a queue of this name. Asks nothing."""

    def put(self, connection: Connection, queue: str, paused: bool) -> None:
        """Pause a queue, or resume it, in one step. Of several at the same time the last one holds."""

    def paused(self, connection: Connection, queues: Collection[str]) -> set[str]:
        """Those of the queues that are paused now."""


class FailedTasks(Protocol):
    """Stores failed tasks beside the dead letters, for one thread: at most `failed_most`, each for `failed_expires` seconds."""

    def put(self, several: Sequence[tuple[Message, DeadLetter]]) -> None:
        """Store whole messages, safely before it returns; one replaces an earlier one of its id. Raises what publishing raises,
        and then some of them may be stored.
        """

    def close(self) -> None:
        """Give back what it has opened, but the connection."""


class Run(TypedDict):
    """What an entry of beat's timetable did last: when it was sent, in ISO 8601, and how often it was."""

    last_run_at: str
    total_run_count: int


def run_of(given: object) -> Run | None:
    """The run that somebody has stored, as JSON had it; None for anything else."""
    at, count = (given.get("last_run_at"), given.get("total_run_count")) if isinstance(given, dict) else (None, None)
    return {"last_run_at": at, "total_run_count": count} if isinstance(at, str) and type(count) is int else None


class Lead(Protocol):
    """Which of several beats leads, and the last runs of the timetable, kept by the broker. For one beat, in one thread.

    Each call asks the broker, and raises one of `errors` if that is unavailable. After an error it is not known what the broker
    has done: the next :meth:`hold` says whether this beat leads, and :meth:`runs` what was sent.
    """

    connection: Connection
    errors: tuple[type[BaseException], ...]

    def __init__(self, app: "Celery") -> None: ...

    def hold(self) -> str:
        """Lead, if no other beat does, and go on leading: to be called every second. Returns an empty text if another leads,
        and otherwise the name of its term, which is another one if a beat may have led in between.
        """

    def now(self) -> float:
        """The broker's time, in seconds since 1970, as of the last :meth:`hold` and the monotonic clock. Asks nothing."""

    def runs(self) -> dict[str, Run]:
        """The last run of each entry that was stored, by the entry's name. Anything else that was stored is left out."""

    def keep(self, runs: Mapping[str, Run]) -> bool:
        """Store the runs of all entries in place of those that are stored. Returns False, and stores nothing, if another beat
        leads now.
        """

    def fire(self, name: str, run: Run, part: Part | None, queue: str = "") -> bool:
        """Publish a message, and store the run of its entry, both or neither. Returns False if another beat may lead now: then
        it usually has done neither, and :meth:`runs` says. None in place of a message stores the run alone. `queue`: the one
        that has to get the message; raises UnroutedError if that is not there yet.
        """

    def is_refusal(self, error: BaseException) -> bool:
        """Whether the broker has answered that it does not take this message, and would again."""

    def leave(self) -> None:
        """Let another beat lead at once. Raises nothing."""


class Bulk(Protocol):
    """Publishes many messages at once. `timeout`: seconds to wait for the broker."""

    def __init__(self, connection: Connection, timeout: float) -> None: ...

    def send(self, parts: Sequence[Part]) -> None:
        """Publish, and wait until the broker has confirmed all of them. Raises UnconfirmedError if it does not."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True)
class Copy:
    """How `make backup` copies the data of a server.

    `volume`: the key of its volume in the Compose file. `version`: the command, in its image, that prints its version.
    `save(url)`: has the running server write what it holds to a file of the volume, and returns when that is done; raises the
    connection's errors. None: its files can be copied only while it is stopped.
    """

    volume: str
    version: tuple[str, ...] = ()
    save: Callable[[str], None] | None = None
    #: Patterns of files that are left out. Of the others, by path, where a copy has it, and what a copy has in addition.
    without: tuple[str, ...] = ()
    moved: Mapping[str, str] = field(default_factory=dict)
    added: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Broker:
    """A row of the table of brokers."""

    #: The value of BROKER.
    name: str
    #: The schemes of its URLs.
    schemes: tuple[str, ...]
    #: Its URL if CELERY_BROKER_URL is not set.
    url: Callable[[Environ], str]
    #: Celery settings for this broker only.
    settings: Callable[["Choices"], Options]
    #: The name of the class that stores its dead letters; None: they are stored nowhere.
    dead_letters: str | None
    #: The name of the function that asks the server for its state: facts(app, connection, environ) returns a `facts.Server`.
    facts: str | None
    #: The name of the class that notes which queues are paused, a :class:`Pauses`; None: none can be.
    pauses: str | None = None
    #: The name of the class by which messages are moved from it and to it (celery_kit/brokers/moving.py).
    end: str | None = None
    #: Its compose file; None if it runs without containers.
    compose_file: str | None = None
    #: The services of that file that its URLs name: one, or the nodes of a cluster.
    hosts: tuple[str, ...] = ("broker",)
    #: The URL of the results server that comes with it, if one does.
    results_url: Callable[[Environ], str] | None = None
    #: Its limits by feature; those that only appear with a pool or a result backend, by its name and feature.
    limits: Limits = field(default_factory=dict)
    pool_limits: Mapping[str, Limits] = field(default_factory=dict)
    backend_limits: Mapping[str, Limits] = field(default_factory=dict)
    #: By scheme, the transport that replaces kombu's, where there is one.
    transports: Mapping[str, str] = field(default_factory=dict)
    #: Tasks with an ETA wait in the broker, not in a worker.
    delays_tasks: bool = False
    #: park(app, message, queue): has a message wait in the broker that reached a worker before its ETA, where the worker cannot
    #: hold it without harm, and acknowledges it; returns whether it does. Raises the errors of publishing.
    park: Callable[["Celery", Message, str], bool] = lambda app, message, queue: False
    #: close_inherited(connection): closes, in a forked child, its end of the parent's sockets, and sends nothing to the server.
    close_inherited: Callable[[Connection], None] = lambda connection: None
    #: Publishes many messages at once, for `send_many`.
    bulk: type[Bulk] | None = None
    #: like(channel, part, seconds): publishes one message like its sample, and returns after the broker has accepted it.
    like: Callable[..., None] | None = None
    #: The name of the class by which one of several beats leads; None: only one may run.
    lead: str | None = None
    #: explain(error): one line on an error that a declaration would get again and again, and what to do; None for other errors.
    explain: Callable[[BaseException], str | None] | None = None
    #: Its users and rights as Kubernetes' objects, for an operator of its own; None: its server makes them.
    manifests: Callable[[], list[Options]] | None = None
    #: The services of its stack that clients are sent to by another one: a program of this machine gets ADDRESSES of them.
    nodes: tuple[str, ...] = ()
    #: Whether its stack has TLS (SECURE); without it, that is refused in one line.
    has_tls: bool = True
    #: How its data is copied; None: it cannot be.
    copy: Copy | None = None
    #: The prefix of its own variables; by port of its container, the variable for the port where that is published.
    variables: str | None = None
    ports: Mapping[int, str] = field(default_factory=dict)

    def letters(self) -> DeadLetters | None:
        """Where it stores dead letters; None: nowhere. Imports the broker's client, which few commands need."""
        return symbol_by_name(self.dead_letters)() if self.dead_letters else None


def schemes_of(url: str | Sequence[str] | None) -> set[str]:
    """The schemes of a setting's URLs: one URL, several with a semicolon between them, or a list, as in kombu."""
    texts = [url] if isinstance(url, str) else url or []
    each = [one for text in texts for one in text.split(";")]
    return {one.partition(":")[0].partition("+")[0] for one in each if one == each[0] or "://" in one}
