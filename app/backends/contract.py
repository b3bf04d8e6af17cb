"""What every result backend's room supplies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.brokers.contract import Broker, Environ
from app.limits import Limits

if TYPE_CHECKING:
    from celery import Celery

    from app.backends.redis_claims import Claims
    from app.profile import Profile


@dataclass(frozen=True)
class Backend:
    """A row of the table of result backends.

    `has_server`: it needs the service `results`. `read_elsewhere`: any process can read a result by its id, not the sender
    alone. `chords`: a chord can be sent. `facts`: where the function stands that asks its server, where it
    has one: facts(app) gives an `app.facts.Server`.
    alone. `chords`: a chord can be sent. `claims(app, url)`: the store that `app/once.py` keeps its claims in, where a server
    of this kind can be one. `on_task_call(backend, producer)`: what it does when a task is sent, in place of Celery's own.
    alone. `chords`: a chord can be sent. `fast_class`: what takes the place of Celery's own class on ENGINE=fast.
    """

    name: str
    schemes: tuple[str, ...]
    url: Callable[[Environ, Broker], str]
    settings: Callable[["Profile"], dict[str, Any]]
    has_server: bool
    read_elsewhere: bool
    chords: bool
    facts: str | None = None
    fast_class: str | None = None
    limits: Limits = field(default_factory=dict)
    claims: Callable[["Celery", str], "Claims"] | None = None
    on_task_call: Callable[[Any, Any], None] | None = None
