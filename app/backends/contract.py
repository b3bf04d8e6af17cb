"""What every result backend's room supplies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.brokers.contract import Broker, Environ
from app.limits import Limits

if TYPE_CHECKING:
    from app.profile import Profile


@dataclass(frozen=True)
class Backend:
    """A row of the table of result backends.

    `has_server`: it needs the service `results`. `read_elsewhere`: any process can read a result by its id, not the sender
    alone. `chords`: a chord can be sent. `facts`: where the function stands that asks its server, where it
    has one: facts(app) gives an `app.facts.Server`.
    """

    name: str
    schemes: tuple[str, ...]
    url: Callable[[Environ, Broker], str]
    settings: Callable[["Profile"], dict[str, Any]]
    has_server: bool
    read_elsewhere: bool
    chords: bool
    facts: str | None = None
    limits: Limits = field(default_factory=dict)
