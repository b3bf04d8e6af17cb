"""The table of pools: the class of each, how many tasks it runs at once, what it can do.

A worker of a kit's app gets the kit's class of its pool, however that was named: the class takes the place of Celery's when the
worker begins. Celery's own table is every app's of the process, and stays as it is.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from celery.concurrency import ALIASES, get_implementation  # type: ignore[attr-defined]  # its stubs lack the table
from celery.platforms import IS_WINDOWS

from celery_kit.base.capabilities import DOCS, Limit, Limits
from celery_kit.base.choices import AUTO, is_auto
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.base.signals import celeryd_init, worker_init

logger = logging.getLogger(__name__)

#: Celery's options that name a file which a worker writes.
FILES = ("pidfile", "statedb")


@dataclass(frozen=True)
class Pool:
    """A row of the table.

    `kind`: its class, "module:class", imported in workers alone. `concurrency`: tasks at once; None: one a CPU core that the
    process may use, by its CPU limit and affinity, as Celery's `auto` counts them. `sockets_patched()`: None, or the check that
    the standard library's sockets yield to other tasks.
    What it can do follows from `limits`, its rows of the support matrix.
    """

    name: str
    kind: str
    for_work: str
    concurrency: int | None
    sockets_patched: Callable[[], bool] | None = None
    #: Of "soft" and "hard", the task time limits that Celery itself keeps to there.
    celerys_time_limits: tuple[str, ...] = ()
    #: Flags for `celery worker`. Mingle costs 1.0 s of start-up. The signs of life that Flower goes by are most of what an idle
    #: worker does; each says when the next is due, so that one which is dead is shown as offline after two intervals.
    worker_flags: tuple[str, ...] = ("--without-mingle", "--without-gossip", "--heartbeat-interval", "5")
    #: By feature, what it cannot do or does differently.
    limits: Limits = field(default_factory=dict)
    #: On ENGINE=fast, the messages that a worker holds for each of its tasks at once (worker_prefetch_multiplier): results and
    #: acknowledgements go in groups, which can be no larger.
    fast_prefetch: int = 1

    @property
    def time_limits(self) -> str:
        """Which task time limits it keeps to, in words."""
        if "hard_time_limit_of_busy_work" in self.limits:
            return "soft and hard, of tasks that yield"
        return f"soft and hard{', between calls' if 'hard_time_limit_of_a_waiting_call' in self.limits else ''}"

    @property
    def has_children(self) -> bool:
        """Tasks run in processes of their own, which can be ended and replaced."""
        return "reject_on_worker_lost" not in self.limits

    @property
    def answers_while_busy(self) -> bool:
        """Its loop runs during a task, and answers remote control."""
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
            _patched("eventlet.patcher", "is_monkey_patched"), limits=GREEN,
        ),
        Pool(
            "gevent", "celery_kit.pools.gevent:Gevent", "many slow connections", 100,
            _patched("gevent.monkey", "is_module_patched"), limits=GREEN, celerys_time_limits=("hard",),
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


def _class_of(implementation: Any) -> Any:
    return implementation if isinstance(implementation, type) else type(implementation)


def _full_name(kind: Any) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def row(implementation: Any) -> Pool | None:
    """The row of a pool of Celery's or of the kit's, given as its class or an instance; None for one of the user's own."""
    name = _full_name(_class_of(implementation))
    return next((pool for pool in POOLS.values() if name in (pool.kind, ALIASES.get(pool.name))), None)


def chosen(conf: Any, options: dict[str, Any]) -> Any:
    """The class of the pool that a worker is to have, by its settings and its command line, as celeryd_init gives both."""
    return get_implementation(options.get("pool") or options.get("pool_cls") or conf.worker_pool)


def named(implementation: Any) -> str:
    """The name that POOL= has for a pool, given likewise; its module's for a pool of the user's own."""
    return pool.name if (pool := row(implementation)) else _class_of(implementation).__module__.rpartition(".")[2]


@dataclass(frozen=True)
class Wish:
    """Something that `celery worker` accepts on every pool and not every pool can do.

    `asked(conf, options)`: it was asked for. `served(pool)`: the pool can do it. `instead`: what happens, and what to do.
    `fatal`: the worker, or its tasks, would break; without it they would only not get what was asked for.
    """

    name: str
    asked: Callable[[Any, dict[str, Any]], object]
    served: Callable[[Pool], bool]
    instead: str
    fatal: bool = False


def _cannot(feature: str, kind: str = "cannot") -> Callable[[Pool], bool]:
    """The check that no row of the pool's limits says so of a feature."""
    return lambda pool: not (limit := pool.limits.get(feature)) or limit.kind != kind


WISHES = (
    Wish(
        "--autoscale", lambda _, options: options.get("autoscale"), _cannot("autoscale"),
        "the worker would end as soon as it should grow; give it --concurrency, and add workers", True,
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


def check(pool: Pool, conf: Any, options: dict[str, Any]) -> list[str]:
    """Refuse what breaks the worker on this pool; gives a line for each wish that comes to nothing on it."""
    unserved = [wish for wish in WISHES if wish.asked(conf, options) and not wish.served(pool)]
    for wish in unserved:
        if wish.fatal:
            refuse(f"{wish.name} cannot be had on pool {pool.name}: {wish.instead}")
    return [f"celery-kit: {wish.name} does nothing on pool {pool.name}: {wish.instead}" for wish in unserved]


def connect() -> None:
    """Have the workers of the kit's apps get the class and the settings of the pool that is chosen, whatever POOL says."""
    _enter()
    celeryd_init.connect(_apply, weak=False)
    worker_init.connect(_begin, weak=False)


def _enter() -> None:
    """Have Celery know the names that it has no pool for: in its table, and on its command line, which may be there by now."""
    for pool in POOLS.values():
        ALIASES.setdefault(pool.name, pool.kind)
    if command := sys.modules.get("celery.bin.worker"):
        vars(command)["WORKERS_POOL"].choices = tuple(ALIASES)


def _check_shared_memory(pool: Pool) -> None:
    """Refuse where processes cannot share what billiard has them share: semaphores, and memory by a temporary file."""
    try:
        import_module("billiard").Value("i")
    except OSError as error:
        refuse(
            f"pool {pool.name} needs a folder for temporary files, and semaphores in /dev/shm: {error}; mount a tmpfs at /tmp "
            "(docker run --tmpfs /tmp), name a folder in TMPDIR=, or choose another pool"
        )


def _apply(conf: Any, options: dict[str, Any], **_: Any) -> None:
    # `celery worker --pool` says pool, app.Worker(…) says pool_cls; either may be a name or a class.
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


def _begin(sender: Any, **_: Any) -> None:
    """Give a worker the kit's class of its pool; and have `auto` be the pool's own number, where it has one: Celery itself
    resolves it for the others, right after this.
    """
    of_kits: Any = import_module("celery_kit.pools.kits")  # only in workers
    sender.pool_cls = of_kits.kits(get_implementation(sender.pool_cls))
    if is_auto(sender.concurrency) and (pool := row(sender.pool_cls)) and pool.concurrency:
        sender.concurrency = pool.concurrency
