"""The table of pools: each one's class, its default concurrency and what it can do.

A worker of a kit's app gets the kit's class of its pool, however the pool was named. The class replaces Celery's when the
worker starts. Celery's own table of pools belongs to all apps of the process, and keeps Celery's classes.
"""

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from celery.app.utils import Settings
from celery.concurrency import ALIASES, get_implementation  # type: ignore[attr-defined]  # its stubs lack the table
from celery.platforms import IS_WINDOWS

from celery_kit.base.capabilities import DOCS, Earlier, Limit, Limits
from celery_kit.base.choices import AUTO, is_auto
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.base.signals import celeryd_init, worker_init
from celery_kit.base.types import Worker

logger = logging.getLogger(__name__)

#: The options of `celery worker` by name, as celeryd_init passes them.
WorkerOptions: TypeAlias = Mapping[str, Any]
#: Those that name a file which the worker writes.
FILES = ("pidfile", "statedb")


@dataclass(frozen=True)
class Pool:
    """A row of the table.

    `kind`: its class, "module:class", which only workers import. `concurrency`: how many tasks it runs at once; None: one per
    CPU core that the process may use, by its CPU limit and affinity, as Celery's `auto` counts them. `sockets_patched()`:
    whether the standard library's sockets yield to other tasks; None where they need not.
    What the pool can do follows from `limits`, its rows of the support matrix.
    """

    name: str
    kind: str
    for_work: str
    concurrency: int | None
    sockets_patched: Callable[[], bool] | None = None
    #: Of "soft" and "hard", the task time limits that Celery itself enforces on it.
    celerys_time_limits: tuple[str, ...] = ()
    #: Flags for `celery worker`. Mingle costs 1.0 s of start-up. Heartbeat events, which Flower needs, are most of what an idle
    #: worker does. Each says when the next is due, so that Flower shows a dead worker as offline after two intervals.
    worker_flags: tuple[str, ...] = ("--without-mingle", "--without-gossip", "--heartbeat-interval", "5")
    #: By feature, what it cannot do or does differently.
    limits: Limits = field(default_factory=dict)
    #: Those that only earlier versions of Celery have.
    earlier: tuple[Earlier, ...] = ()
    #: worker_prefetch_multiplier on ENGINE=fast. Results and acknowledgements are sent in groups, which can be no larger.
    fast_prefetch: int = 1

    @property
    def time_limits(self) -> str:
        """The task time limits that it enforces, in words."""
        if "hard_time_limit_of_busy_work" in self.limits:
            return "soft and hard, of tasks that yield"
        return f"soft and hard{', between calls' if 'hard_time_limit_of_a_waiting_call' in self.limits else ''}"

    @property
    def has_children(self) -> bool:
        """Whether tasks run in child processes, which can be killed and replaced."""
        return "reject_on_worker_lost" not in self.limits

    @property
    def answers_while_busy(self) -> bool:
        """Whether its loop runs during a task and answers remote control commands."""
        return "ping_during_a_task" not in self.limits


def _patched(module: str, check: str) -> Callable[[], bool]:
    return lambda: bool(getattr(import_module(module), check)("socket"))


SEEN = "seen by this test"

CANNOT_RESIZE = Limit(
    "cannot", "the worker answers with an AttributeError, and stays as it is", "celery/worker/control.py; " + SEEN
)

NO_ANSWER = Limit("cannot", "no answer before the running task is over: the worker has one thread", SEEN)

ONE_PROCESS: Limits = {
    "reject_on_worker_lost": Limit(
        "cannot",
        "there is no child process: a task that ends its process ends the worker",
        f"{DOCS}/userguide/configuration.html#task-reject-on-worker-lost; " + SEEN,
    ),
    "cpu_tasks_use_several_cores": Limit("cannot", "all tasks share one process, and so one core", "Python's GIL; " + SEEN),
}
#: eventlet and gevent.
GREEN: Limits = {
    **ONE_PROCESS,
    "hard_time_limit_of_busy_work": Limit(
        "cannot",
        "the task goes on to its end: the limit is checked where a task yields",
        f"{DOCS}/userguide/workers.html#time-limits",
    ),
}
#: Both wait for a place in a pool of greenlets, and growth does not wake them.
EARLIER_GREEN = tuple(
    Earlier(
        feature,
        {"celery": "<5.7"},
        Limit("differently", "the tasks that wait for a place begin as others end", "celery/concurrency/gevent.py 5.7.0, grow"),
    )
    for feature in ("pool_grow", "autoscale")
)
PREFORK: Limits = {
    "context_starts_fresh": Limit("differently", "a later task of the same process sees what an earlier one set", SEEN),
}
THREADS: Limits = {
    **ONE_PROCESS,
    "hard_time_limit_of_a_waiting_call": Limit(
        "differently",
        "the task is ended as soon as the call returns: nothing cuts a thread's call short",
        "https://docs.python.org/3/c-api/threads.html#c.PyThreadState_SetAsyncExc",
    ),
    "pool_grow": CANNOT_RESIZE,
    "pool_shrink": CANNOT_RESIZE,
    "terminate_of_a_waiting_call": Limit(
        "differently",
        "the task is ended, and REVOKED, as soon as the call returns: nothing cuts a thread's call short",
        "https://docs.python.org/3/c-api/threads.html#c.PyThreadState_SetAsyncExc",
    ),
    "autoscale": Limit("cannot", "refused at start: Celery's own worker ends as soon as it should grow", SEEN),
    "context_starts_fresh": Limit("differently", "a later task of the same thread sees what an earlier one set", SEEN),
}
SOLO: Limits = {
    **ONE_PROCESS,
    "pool_grow": CANNOT_RESIZE,
    "pool_shrink": CANNOT_RESIZE,
    "autoscale": Limit("differently", "the worker stays at one task", SEEN),
    **dict.fromkeys(
        ("terminate", "terminate_of_a_waiting_call"),
        Limit("cannot", "the command is read after the task, which has then completed", SEEN),
    ),
    **dict.fromkeys(("ping_during_a_task", "active", "query_task"), NO_ANSWER),
    "tasks_overlap": Limit("cannot", "tasks run one after the other", f"{DOCS}/userguide/concurrency/index.html"),
    "context_starts_fresh": Limit("differently", "a later task sees what an earlier one set", SEEN),
}

POOLS: dict[str, Pool] = {
    pool.name: pool
    for pool in (
        Pool(
            "prefork", "celery_kit.pools.prefork:Prefork", "CPU-bound work; all time limits", None,
            limits=PREFORK, fast_prefetch=4, celerys_time_limits=("soft", "hard"),
        ),
        Pool(
            "eventlet", "celery_kit.pools.eventlet:Eventlet", "many slow connections (upstream: bug fixes only)", 100,
            _patched("eventlet.patcher", "is_monkey_patched"), limits=GREEN, earlier=EARLIER_GREEN,
        ),
        Pool(
            "gevent", "celery_kit.pools.gevent:Gevent", "many slow connections", 100,
            _patched("gevent.monkey", "is_module_patched"), limits=GREEN, earlier=EARLIER_GREEN, celerys_time_limits=("hard",),
        ),
        Pool(
            "threads", "celery_kit.pools.threads:Threads", "slow connections through libraries that cannot be patched", 16,
            limits=THREADS, fast_prefetch=4,
        ),
        Pool(
            "solo", "celery_kit.pools.solo:Solo", "one task at a time; scale by more workers", 1, limits=SOLO, fast_prefetch=4,
        ),
    )
}  # fmt: skip


def _class_of(implementation: object) -> type:
    return implementation if isinstance(implementation, type) else type(implementation)


def _full_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def row(implementation: object) -> Pool | None:
    """The row of a pool, given as its class or an instance: Celery's own or the kit's. None for a user's class."""
    name = _full_name(_class_of(implementation))
    return next((pool for pool in POOLS.values() if name in (pool.kind, ALIASES.get(pool.name))), None)


def chosen(conf: Settings, options: WorkerOptions) -> type:
    """The class of the pool that a worker's command line, or else its settings, choose. celeryd_init passes both.

    Raises what importing it raises.
    """
    return get_implementation(options.get("pool") or options.get("pool_cls") or conf.worker_pool)


def named(implementation: object) -> str:
    """The name of a pool as in POOL=, given its class or an instance. For a user's class, the name of its module."""
    return pool.name if (pool := row(implementation)) else _class_of(implementation).__module__.rpartition(".")[2]


@dataclass(frozen=True)
class Wish:
    """An option that `celery worker` accepts on every pool, but that not every pool supports.

    `asked(conf, options)`: whether it was given. `served(pool)`: whether the pool supports it. `instead`: what happens, and
    what to do. `fatal`: the option would break the worker or its tasks; otherwise it would have no effect.
    """

    name: str
    asked: Callable[[Settings, WorkerOptions], object]
    served: Callable[[Pool], bool]
    instead: str
    fatal: bool = False


def _cannot(feature: str, kind: str = "cannot") -> Callable[[Pool], bool]:
    """The check that the limits of a pool do not have this kind of limit for a feature."""
    return lambda pool: not (limit := pool.limits.get(feature)) or limit.kind != kind


WISHES = (
    Wish(
        "--autoscale", lambda _, options: options.get("autoscale"), _cannot("autoscale"),
        "the worker would exit as soon as it has to grow; give it --concurrency, and add workers", True,
    ),
    Wish(
        "--autoscale", lambda _, options: options.get("autoscale"), _cannot("autoscale", "differently"),
        "the worker stays as it is; add workers",
    ),
    Wish(
        "--beat", lambda _, options: options.get("beat"), lambda pool: not pool.sockets_patched,
        "the timetable would not run; start it as a process of its own: celery -A app beat", True,
    ),
    Wish(
        "worker_max_tasks_per_child",
        lambda conf, options: options.get("max_tasks_per_child") or conf.worker_max_tasks_per_child,
        lambda pool: pool.has_children, "there are no child processes to replace; choose prefork",
    ),
    Wish(
        "worker_max_memory_per_child",
        lambda conf, options: options.get("max_memory_per_child") or conf.worker_max_memory_per_child,
        lambda pool: pool.has_children, "there are no child processes to replace; choose prefork",
    ),
)  # fmt: skip


def check(pool: Pool, conf: Settings, options: WorkerOptions) -> list[str]:
    """Return a line for each given option that has no effect on this pool. Exits if one would break the worker."""
    unserved = [wish for wish in WISHES if wish.asked(conf, options) and not wish.served(pool)]
    for wish in unserved:
        if wish.fatal:
            refuse(f"{wish.name} is not supported on pool {pool.name}: {wish.instead}")
    return [f"celery-kit: {wish.name} has no effect on pool {pool.name}: {wish.instead}" for wish in unserved]


def connect() -> None:
    """Give the workers of the kit's apps the kit's class and settings of their pool, whatever POOL says."""
    _enter()
    celeryd_init.connect(_apply, weak=False)
    worker_init.connect(_begin, weak=False)


def _enter() -> None:
    """Add names that Celery has no pool for to its table, and to its command line if that is imported already."""
    for pool in POOLS.values():
        ALIASES.setdefault(pool.name, pool.kind)
    if command := sys.modules.get("celery.bin.worker"):
        vars(command)["WORKERS_POOL"].choices = tuple(ALIASES)


def _check_shared_memory(pool: Pool) -> None:
    """Refuse where billiard cannot share semaphores and memory, the latter by a temporary file, between processes."""
    try:
        import_module("billiard").Value("i")
    except OSError as error:
        refuse(
            f"pool {pool.name} needs a folder for temporary files, and semaphores in /dev/shm: {error}; mount a tmpfs at /tmp "
            "(docker run --tmpfs /tmp), name a folder in TMPDIR=, or choose another pool"
        )


def _apply(conf: Settings, options: WorkerOptions, **_: object) -> None:
    # `celery worker --pool` sets pool, app.Worker(…) sets pool_cls; either may be a name or a class.
    pool = row(chosen(conf, options))
    if pool is None:
        return
    if pool.has_children and IS_WINDOWS:
        others = ", ".join(name for name, one in POOLS.items() if not one.has_children)
        refuse(
            f"pool {pool.name} does not run on Windows, where its tasks would fail with `not enough values to unpack "
            f"(expected 3, got 0)`; choose one of {others} by --pool or POOL= (docs/pools.md)"
        )
    if pool.sockets_patched and not pool.sockets_patched():
        refuse(f"pool {pool.name} was chosen too late to patch the sockets; name it on the command line: --pool {pool.name}")
    for name, file in ((name, options.get(name)) for name in FILES):
        if file and (why := why_not_writable(Path(file))):
            refuse(f"--{name} {file} cannot be written: {why}")
    if pool.has_children:
        _check_shared_memory(pool)
    for line in check(pool, conf, options):
        logger.warning(line)
    if not options.get("concurrency") and not conf.worker_concurrency:
        conf.worker_concurrency = AUTO


def _begin(sender: Worker, **_: object) -> None:
    """Give a worker the kit's class of its pool, and resolve a concurrency of `auto` where the pool has a number of its own.

    Right after this, Celery itself resolves it for the other pools.
    """
    kits: Callable[[type], type] = import_module("celery_kit.pools.kits").kits  # only in workers
    sender.pool_cls = kits(get_implementation(sender.pool_cls))
    if is_auto(sender.concurrency) and (pool := row(sender.pool_cls)) and pool.concurrency:
        sender.concurrency = pool.concurrency
