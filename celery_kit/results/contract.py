"""What the module of every result backend supplies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from celery_kit.base.capabilities import Earlier, Limits
from celery_kit.base.types import Options
from celery_kit.brokers.contract import Broker, Copy, Environ

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.choices import Choices
    from celery_kit.results.redis.claims import Claims


@dataclass(frozen=True)
class Backend:
    """A row of the table of result backends."""

    name: str
    #: The schemes of its URLs.
    schemes: tuple[str, ...]
    #: Its URL if CELERY_RESULT_BACKEND is not set.
    url: Callable[[Environ, Broker], str]
    #: Celery settings for this backend only.
    settings: Callable[["Choices"], Options]
    #: It needs the service `results`.
    has_server: bool
    #: Any process can read a result by its id, not only the sender.
    read_elsewhere: bool
    #: A chord can be sent.
    chords: bool
    #: All threads and greenlets of a process may share one object: nothing in it belongs to the thread that made it.
    thread_safe: bool
    #: The name of the function that asks its server, where it has one: facts(app) returns a `celery_kit.base.facts.Server`.
    facts: str | None = None
    #: By scheme, the class that replaces Celery's on ENGINE=fast.
    fast_classes: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=dict)
    #: Those that only earlier versions of Celery have.
    earlier: tuple[Earlier, ...] = ()
    #: claims(app, url): the store for the claims of `celery_kit/once.py`, where a server of this kind can be one.
    claims: Callable[["Celery", str], "Claims"] | None = None
    #: carry(app, source, target): copies what a server holds to another one, by their URLs, but nothing that is there already.
    #: Returns how many keys it has copied. None: there is nothing that another process could read.
    carry: Callable[["Celery", str, str], int] | None = None
    #: close_inherited(backend): closes, in a forked child, its end of the parent's sockets, and sends nothing to the server.
    close_inherited: Callable[..., None] | None = None
    #: How the data of its server is copied; None: it has none.
    copy: Copy | None = None
    #: adapt(backend): change, on a process's backend, what the kit does differently from Celery.
    adapt: Callable[..., None] | None = None
