"""All of the user's choices: the environment, read and checked.

BROKER, BACKEND and POOL choose rows of their tables; the other variables are those of celery_kit/base/choices.py.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from celery_kit.base.capabilities import EARLIER, Limits, earlier
from celery_kit.base.choices import TASK_TIME_LIMIT, Choices
from celery_kit.base.refusals import choose, refuse
from celery_kit.brokers import BROKERS, Broker, other_broker, schemes_of
from celery_kit.pools.table import POOLS, Pool
from celery_kit.results import BACKENDS, Backend, other_backend


@dataclass(frozen=True)
class Profile(Choices):
    """One combination of broker, result backend and pool, with the other choices. Times are in seconds."""

    broker: Broker
    backend: Backend
    pool: Pool
    broker_url: str
    result_backend: str
    once_url: str | None

    @property
    def prefetch_multiplier(self) -> int:
        """Messages that a worker prefetches, for each task that it can run at once."""
        return self.prefetch or (self.pool.fast_prefetch if self.engine == "fast" else 1)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ, limit: int = TASK_TIME_LIMIT) -> "Profile":
        """Read the environment. Refuses an invalid value: one line, exit code 2. `limit`: as of Choices.from_environ."""

        def value(name: str, default: str) -> str:
            return environ.get(name) or default

        broker_url = environ.get("CELERY_BROKER_URL", "")
        result_backend = environ.get("CELERY_RESULT_BACKEND", "")
        broker = _row("BROKER", value("BROKER", ""), "CELERY_BROKER_URL", broker_url, BROKERS, "embedded", other_broker)
        backend = _row(
            "BACKEND", value("BACKEND", ""), "CELERY_RESULT_BACKEND", result_backend, BACKENDS, "redis", other_backend
        )
        return cls(
            **vars(Choices.from_environ(environ, limit)),
            broker=broker,
            backend=backend,
            pool=POOLS[choose("POOL", value("POOL", "prefork"), POOLS)],
            broker_url=broker_url or broker.url(environ),
            result_backend=result_backend or backend.url(environ, broker),
            once_url=once_url(environ),
        )


def of_an_app(broker: Broker | None, backend: Backend | None, environ: Mapping[str, str] = os.environ) -> Profile:
    """The other choices, for an app whose own settings name its servers. Where the kit has no row for one of them, Redis stands
    in.
    """
    rows = {"BROKER": (broker or BROKERS["redis"]).name, "BACKEND": (backend or BACKENDS["redis"]).name}
    return Profile.from_environ({**environ, **rows, "CELERY_BROKER_URL": "", "CELERY_RESULT_BACKEND": ""}, limit=0)


def limits(broker: Broker, backend: Backend, pool: Pool) -> Limits:
    """By feature, what a combination cannot do or does differently. A feature without a row works."""
    together = {**broker.pool_limits.get(pool.name, {}), **broker.backend_limits.get(backend.name, {})}
    of_versions = earlier([*EARLIER, *backend.earlier, *pool.earlier])
    return {**of_versions, **broker.limits, **together, **backend.limits, **pool.limits}


Row = TypeVar("Row", Broker, Backend)


def _row(
    name: str, given: str, url_name: str, url: str, rows: Mapping[str, Row], default: str, other: Callable[[str], Row | None]
) -> Row:
    """The row that is chosen by name, or by the scheme of Celery's own URL. Refuses a name that contradicts the URL.

    `other`: makes a row for a scheme that Celery knows and the kit has no module for.
    """
    if given:
        choose(name, given, rows)
    if not url:
        return rows[given or default]
    schemes = schemes_of(url)
    serving = [row for row in rows.values() if schemes <= set(row.schemes)]
    begins = f"begins with {', '.join(f'{scheme}:' for scheme in sorted(schemes))}"
    if given and rows[given] not in serving:
        refuse(f"{name}={given} contradicts {url_name}, which {begins}; leave one of them out")
    if given or serving:
        return rows[given] if given else serving[0]
    others = [other(scheme) for scheme in sorted(schemes)]
    if not (all(others) and (found := others[0])):
        allowed = sorted({scheme for row in rows.values() for scheme in row.schemes})
        refuse(f"{url_name} {begins}, which is not known; allowed: {', '.join(allowed)}, or what Celery has beside these")
    return found


def once_url(environ: Mapping[str, str] = os.environ) -> str | None:
    """ONCE_URL, of the store for the claims of `celery_kit/once.py`; None: the results server. Refuses an unknown scheme."""
    if given := environ.get("ONCE_URL"):
        schemes = sorted({scheme for backend in BACKENDS.values() if backend.claims for scheme in backend.schemes})
        choose("the scheme of ONCE_URL", given.partition(":")[0].partition("+")[0], schemes)
    return given or None
