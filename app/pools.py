"""The table of pools: what each brings, how many tasks it runs at once, what it can do."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from celery.concurrency import get_implementation
from celery.signals import celeryd_init

from app.limits import Limits
from app.refusal import refuse

#: The largest concurrency that a worker may be given, in tasks at once.
MOST_CONCURRENCY = 10_000


@dataclass(frozen=True)
class Pool:
    """A row of the table.

    `module`: Celery's module of the pool, below celery.concurrency. `concurrency`: tasks at once; None: one a CPU core, as
    Celery counts them. `sockets_patched()`: None, or the check that the standard library's sockets yield to other tasks.
    `time_limits`: Celery enforces task time limits. `answers_while_busy`: remote control and heartbeats during a task.
    """

    name: str
    module: str
    for_work: str
    concurrency: int | None
    time_limits: bool
    answers_while_busy: bool
    sockets_patched: Callable[[], bool] | None = None
    #: Flags for `celery worker`. Mingle costs 1.0 s of start-up; gossip and, on green pools over RabbitMQ, heartbeat events
    #: cost a 0.1 s wait per message (docs: 10 tasks/s plain).
    worker_flags: tuple[str, ...] = ("--without-mingle", "--without-gossip")
    #: By feature, what it cannot do or does differently.
    limits: Limits = field(default_factory=dict)


def _patched(module: str, check: str) -> Callable[[], bool]:
    return lambda: bool(getattr(import_module(module), check)("socket"))


_GREEN_FLAGS = ("--without-mingle", "--without-gossip", "--without-heartbeat")

POOLS: dict[str, Pool] = {
    pool.name: pool
    for pool in (
        Pool("prefork", "prefork", "CPU-bound work; the only pool with hard time limits", None, True, True),
        Pool(
            "eventlet", "eventlet", "many slow connections (upstream: bug fixes only)", 100, False, True,
            _patched("eventlet.patcher", "is_monkey_patched"), _GREEN_FLAGS,
        ),
        Pool(
            "gevent", "gevent", "many slow connections", 100, False, True,
            _patched("gevent.monkey", "is_module_patched"), _GREEN_FLAGS,
        ),
        Pool("threads", "thread", "slow connections through libraries that cannot be patched", 16, False, True),
        Pool("solo", "solo", "one task at a time; scale by more workers", 1, False, False),
    )
}  # fmt: skip


def connect() -> None:
    """Have the pool that `celery worker --pool` names take its row's settings, whatever POOL says."""
    celeryd_init.connect(_apply, weak=False)


def _apply(conf: Any, options: dict[str, Any], **_: Any) -> None:
    # `celery worker --pool` says pool, app.Worker(…) says pool_cls; either may be a name or a class.
    chosen = get_implementation(options.get("pool") or options.get("pool_cls") or conf.worker_pool)
    module = chosen.__module__.rpartition(".")[2]
    pool = next((pool for pool in POOLS.values() if pool.module == module), None)
    if pool is None:  # a pool of the user's own
        return
    if pool.sockets_patched and not pool.sockets_patched():
        refuse(f"pool {pool.name} was chosen too late to patch the sockets; name it on the command line: --pool {pool.name}")
    if not options.get("concurrency") and not conf.worker_concurrency and pool.concurrency:
        conf.worker_concurrency = pool.concurrency
    if not pool.answers_while_busy:
        conf.broker_heartbeat = 0  # the broker would take a long task for a dead worker
