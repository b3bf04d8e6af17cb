"""The default settings of an app of the kit. They win over Celery's defaults, and the user's settings win over them.

They follow the app's `broker_url` and `result_backend`, whenever and wherever the user sets those. The rest follows from the
environment, by the variables of `celery_kit/profile.py`. For a server that the kit does not know, only the general settings
apply.

The app may belong to any project. A variable that means something else there, such as LOG_FORMAT, is ignored with a warning.
Settings that contradict the kit are a warning when the worker starts. Neither makes a process exit.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from celery import Celery
from celery.app.utils import Settings

from celery_kit import brokers, results
from celery_kit.base import signals, times
from celery_kit.base.choices import ENGINES, worker_lease
from celery_kit.base.conf import OPTIONS, transport_options
from celery_kit.base.refusals import refuse, unless_refused
from celery_kit.base.types import Options
from celery_kit.profile import Profile, of_an_app

if TYPE_CHECKING:
    from celery.beat import Service

logger = logging.getLogger(__name__)


def general(profile: Profile) -> Options:
    """The settings that are the same for all servers: Celery's, under Celery's names, and the kit's own."""
    late = profile.delivery == "at-least-once"
    return {
        # No accepted task is lost: a message is acknowledged after its task, and redelivered if the worker dies. With
        # DELIVERY=at-most-once, no task runs twice instead.
        "task_acks_late": late,
        "task_reject_on_worker_lost": late,
        # How many messages a worker prefetches for each of its slots. `celery worker --prefetch-multiplier` wins.
        "worker_prefetch_multiplier": profile.prefetch_multiplier,
        # auto: the pool's default, on prefork what the CPU limit allows (celery_kit/pools/table.py)
        "worker_concurrency": profile.concurrency,
        "broker_connection_retry_on_startup": True,  # a worker may start before its broker
        "broker_connection_max_retries": None,  # Celery gives up after 100
        "broker_pool_acquire_timeout": 10.0,  # seconds; Celery waits forever
        "publish_timeout": profile.publish_timeout,  # the kit's own, celery_kit/produce/publishing.py
        "spool": profile.spool,  # celery_kit/produce/spool.py
        "spool_most": profile.spool_most,  # celery_kit/produce/spool.py
        # How many failed tasks are stored, and for how many seconds; 0: none (celery_kit/worker/failed.py).
        "failed_most": profile.failed_most,
        "failed_expires": profile.failed_expires,
        # Off, because prefork starts the clock of the hard limit only when the soft one fires, so that a task's own, shorter
        # time_limit would have no effect (celery/concurrency/asynpool.py, on_timeout_set).
        "task_soft_time_limit": None,
        "task_always_eager": profile.always_eager,  # for tests and a first try: delay() runs the task, without a broker
        "task_track_started": True,  # STARTED distinguishes running tasks from waiting ones
        "result_expires": profile.result_expires,  # seconds
        "task_serializer": profile.serializer,  # one for all three
        "result_serializer": profile.serializer,  # one for all three
        "event_serializer": profile.serializer,  # one for all three
        "accept_content": list(profile.accept_content),  # the serializers that workers and readers of results accept
        "task_compression": profile.task_compression,  # of both, an algorithm such as gzip; None: off
        "result_compression": profile.result_compression,  # of both, an algorithm such as gzip; None: off
        # It reports when each entry ran, and that beat is alive. With BEATS=2 and more, one beat leads, and the others follow.
        "beat_scheduler": f"celery_kit.{'produce.beats' if profile.beats > 1 else 'observe.beat'}:Scheduler",
        "beat_max_loop_interval": 10,  # seconds; how often beat reports that it is alive
        "beats": profile.beats,  # the kit's own, celery_kit/produce/beats.py
        "worker_hijack_root_logger": False,  # celery_kit/observe/logs.py sets it up
        # Whether what a task prints is logged. A debugger needs it on the terminal.
        "worker_redirect_stdouts": profile.redirect_stdouts,
        "worker_send_task_events": profile.send_events,  # for Flower; MONITOR=1 turns it on
        "worker_proc_alive_timeout": 30.0,  # seconds; on a busy machine a new child takes longer than Celery's 4
        "log_format": profile.log_format,  # the kit's own, celery_kit/observe/logs.py
        "engine": profile.engine,  # the kit's own, celery_kit/brokers/__init__.py
        "app_version": profile.app_version,  # the kit's own: what a worker reports as the version of its code
        "queue_version": profile.queue_version,  # the kit's own, celery_kit/produce/queues.py
    }


def fast(profile: Profile) -> Options:
    """The settings that the classes of ENGINE=fast need."""
    return {
        # One client for all threads or greenlets of a process, if the backend is thread-safe (rpc is not). Celery's default is
        # a client each, which on green pools is a connection for every task.
        "result_backend_thread_safe": profile.backend.thread_safe,
    }


@cache
def _of_the_rooms() -> frozenset[str]:
    """The names of all settings that some broker or backend sets."""
    profile = of_an_app(None, None, {})
    of_all = [room.settings for rooms in (brokers.BROKERS, results.BACKENDS) for room in rooms.values()]
    return frozenset(name for settings in (*of_all, fast) for name in settings(profile))


class Defaults(Mapping[str, object]):
    """The default settings of one app. `conf`: all of its settings, which include these."""

    def __init__(self, conf: Settings) -> None:
        self.conf = conf
        self.environ = usable(os.environ)
        profile = of_an_app(None, None, self.environ)
        self.general = general(profile) | (profile.signing.settings(profile.accept_content) if profile.signing else {})
        if self.environ.get("TASK_TIME_LIMIT"):  # otherwise none: a task that runs without the kit is not killed with it
            self.general["task_time_limit"] = profile.task_time_limit
        self._known: tuple[object, Options] = None, {}
        _warn(profile)

    def __getitem__(self, key: str) -> object:
        if key in self.general:
            return self.general[key]
        if key in _of_the_rooms():
            return self.rooms()[key]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        yield from self.general
        yield from self.rooms()

    def __len__(self) -> int:
        return len(self.general) + len(self.rooms())

    def rooms(self) -> Options:
        """The settings for the servers that the app's settings name at this moment."""
        conf = self.conf
        urls = conf.broker_url or "amqp://", conf.result_backend  # as kombu reads an empty one
        chosen = (*urls, conf.engine, conf.task_time_limit, conf.worker_prefetch_multiplier)
        if self._known[0] != chosen:
            self._known = chosen, self._rooms(*chosen)
        return self._known[1]

    def _rooms(self, broker_url: str, result_backend: str, chosen: str, limit: float | None, prefetch: int) -> Options:
        broker, backend = brokers.room(broker_url), results.room(result_backend)
        chosen = chosen if chosen in ENGINES else "plain"  # a settings module may use the name for something else
        profile = replace(of_an_app(broker, backend, self.environ), engine=chosen)
        if prefetch != self.general["worker_prefetch_multiplier"]:  # set by the user: celery_kit/engine/prefetch.py keeps it
            profile = replace(profile, prefetch=prefetch)
        if limit != self.general.get("task_time_limit"):
            profile = replace(profile, visibility_timeout=_visibility_timeout(int(limit or 0), self.environ))
        several: Options = {OPTIONS: {"engine": chosen}} if brokers.schemes_of(broker_url) & brokers.transports().keys() else {}
        found: Options = broker.settings(profile) if broker else several  # brokers of different kinds
        found |= backend.settings(profile) if backend else {}
        return found | (fast(profile) if chosen == "fast" and backend else {})


def usable(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables whose values the kit cannot use, with a warning for each.

    Exits if a variable of message signing is wrong, because signing must not be off unnoticed.
    """
    found = dict(environ)
    while True:
        _, why = unless_refused(lambda: of_an_app(None, None, found))
        if not why:
            return found
        name = next((word for word in re.findall(r"[A-Z][A-Z_]+", why) if word in found), "SECURITY_")
        if name.startswith("SECURITY_"):
            refuse(why)
        logger.warning("celery-kit: %s; this variable is ignored", why)
        del found[name]


def _visibility_timeout(limit: int, environ: Mapping[str, str]) -> int:
    """In seconds, for a time limit in seconds: that of the environment, if it is valid."""
    found, why = unless_refused(lambda: times.seconds(times.VISIBILITY_TIMEOUT, limit, environ, worker_lease(environ)))
    if found is None:
        logger.warning("celery-kit: %s; this variable is ignored", why)
    return found or times.VISIBILITY_TIMEOUT.of(limit)


@dataclass(frozen=True)
class Contradiction:
    """Settings of the user that contradict the kit. `found(conf)`: whether they are set.

    `line`: their effect, a format string for the settings.
    """

    found: Callable[[Settings], object]
    line: str


def _visibility(conf: Settings) -> float | None:
    """The visibility timeout that the user sets, in seconds."""
    timeout: float | None = (conf.broker_transport_options or {}).get("visibility_timeout")
    return timeout


def _lease(conf: Settings) -> float:
    """The seconds of a worker's lease on its messages; 0 if the broker needs none."""
    seconds = transport_options(conf).get("lease_seconds")
    return seconds if isinstance(seconds, int | float) else 0


CONTRADICTIONS = (
    Contradiction(
        lambda conf: conf.engine not in ENGINES,
        "engine={engine!r} is not one of the kit's engines, fast and plain: Celery's own transports and backends are used",
    ),
    Contradiction(
        lambda conf: not conf.task_acks_late and conf.engine == "fast",
        "task_acks_late=False: if a worker dies, its running tasks are lost; the fast engine runs these tasks as Celery does",
    ),
    Contradiction(
        lambda conf: conf.task_acks_late and not conf.task_reject_on_worker_lost,
        "task_reject_on_worker_lost={task_reject_on_worker_lost}: a task whose child process dies fails and is not redelivered",
    ),
    Contradiction(
        lambda conf: (held := _visibility(conf)) and not _lease(conf) and conf.task_time_limit and held <= conf.task_time_limit,
        "broker_transport_options' visibility_timeout is not longer than task_time_limit={task_time_limit}: "
        "a task can be redelivered while it still runs",
    ),
    Contradiction(
        lambda conf: (held := _visibility(conf)) and held <= _lease(conf),
        "broker_transport_options' visibility_timeout is not longer than WORKER_LEASE: "
        "a task can be redelivered while it still runs",
    ),
    Contradiction(
        lambda conf: (conf.broker_transport_options or {}).get("confirm_publish") is False,
        "confirm_publish=False: a task that the broker does not accept is lost without an error",
    ),
)


class _Settings(dict[str, object]):
    """The values for a line's format string."""

    def __init__(self, conf: Settings) -> None:
        self.conf = conf

    def __missing__(self, name: str) -> object:
        return self.conf[name]


def contradictions(conf: Settings) -> list[str]:
    """A line for each contradiction in an app's settings."""
    return [one.line.format_map(_Settings(conf)) for one in CONTRADICTIONS if one.found(conf)]


def _warn_of_contradictions(conf: Settings, **_: object) -> None:
    for line in contradictions(conf):
        logger.warning("celery-kit: %s", line)


def _check_beats(sender: "Service", **_: object) -> None:
    if sender.app.conf.get("beats", 1) > 1:
        from celery_kit.produce import beats  # a single beat does not need it

        beats.check(sender)


def _warn(profile: Profile) -> None:
    if profile.delivery != "at-least-once":
        logger.warning(
            "celery-kit: DELIVERY=at-most-once: a task that has started never runs again; if its worker dies, it is lost"
        )
    if not profile.signing and "pickle" in {profile.serializer, *profile.accept_content}:
        logger.warning(
            "celery-kit: pickle is on: anyone who can write to the broker or results server can run any code in this process"
        )


def connect(app: Celery) -> None:
    """Add these defaults to the settings of `app`, each time that it reads them."""
    app.on_after_configure.connect(_add, weak=False)
    signals.celeryd_after_setup.connect(_warn_of_contradictions, weak=False)
    signals.beat_init.connect(_check_beats, weak=False)
    if getattr(app, "configured", False):  # read already; they are read again if the app gets a settings object later
        _add(app)


def _add(sender: Celery, **_: object) -> None:
    conf = sender.conf
    found = Defaults(conf)
    for layers in filter(None, (conf.maps, conf.defaults)):
        layers.insert(-1, found)  # before Celery's own, which are the last
