"""What every broker's room supplies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.limits import Limits

if TYPE_CHECKING:
    from app.profile import Profile

Environ = Mapping[str, str]


@dataclass(frozen=True)
class Broker:
    """A row of the table of brokers.

    `schemes`: what its URLs begin with. `url(environ)`: where it is when CELERY_BROKER_URL does not say.
    `settings(profile)`: Celery settings that it alone needs. `compose_file`: its stack, or None where it runs without
    containers. `results_url(environ)`: the Redis results server that comes with it, or None. `limits`: by feature;
    `pool_limits`, `backend_limits`: by pool or backend and feature, what only shows together with that one. `transport`: the
    kombu transport that takes the place of kombu's own for its schemes, where there is one. `delays_tasks`: tasks with an ETA
    wait in the broker, not in a worker.
    """

    name: str
    schemes: tuple[str, ...]
    url: Callable[[Environ], str]
    settings: Callable[["Profile"], dict[str, Any]]
    compose_file: str | None = None
    results_url: Callable[[Environ], str] | None = None
    limits: Limits = field(default_factory=dict)
    pool_limits: Mapping[str, Limits] = field(default_factory=dict)
    backend_limits: Mapping[str, Limits] = field(default_factory=dict)
    transport: str | None = None
    delays_tasks: bool = False
