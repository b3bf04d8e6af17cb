"""What every result backend's room supplies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from celery_kit.base.capabilities import Limits
from celery_kit.brokers.contract import Broker, Environ

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.choices import Choices
    from celery_kit.results.redis.claims import Claims


@dataclass(frozen=True)
class Backend:
    """A row of the table of result backends."""

    name: str
    #: What its URLs begin with.
    schemes: tuple[str, ...]
    #: Where it is when CELERY_RESULT_BACKEND does not say.
    url: Callable[[Environ, Broker], str]
    #: Celery settings that it alone needs.
    settings: Callable[["Choices"], dict[str, Any]]
    #: It needs the service `results`.
    has_server: bool
    #: Any process can read a result by its id, not the sender alone.
    read_elsewhere: bool
    #: A chord can be sent.
    chords: bool
    #: One object of it may serve all threads and greenlets of a process: nothing in it belongs to the one that made it.
    thread_safe: bool
    #: Where the function stands that asks its server, where it has one: facts(app) gives an `celery_kit.base.facts.Server`.
    facts: str | None = None
    #: What takes the place of Celery's own class on ENGINE=fast.
    fast_class: str | None = None
    limits: Limits = field(default_factory=dict)
    #: claims(app, url): the store that `celery_kit/once.py` keeps its claims in, where a server of this kind can be one.
    claims: Callable[["Celery", str], "Claims"] | None = None
    #: let_go(backend): the same in a forked child for what it shares with its parent; it begins anew.
    let_go: Callable[[Any], None] | None = None
    #: adapt(backend): change what the backend of a process does otherwise than Celery's own.
    adapt: Callable[[Any], None] | None = None
