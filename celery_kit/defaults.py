"""What every app of the kit has where its user names nothing else: the settings above Celery's own and below the user's.

They follow the app's `broker_url` and `result_backend`, whenever and wherever those are named; the environment chooses the
rest, by the variables of `celery_kit/profile.py`. A server that the kit has no room for gets what is the same for all.

An app may be anybody's: a variable that means something else to its project, such as LOG_FORMAT, is left out with a warning,
and what contradicts the kit in the app's own settings is a warning at its worker's start. Neither ends a process.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from celery_kit import brokers, results
from celery_kit.base import signals, times
from celery_kit.base.choices import ENGINES
from celery_kit.base.conf import OPTIONS
from celery_kit.base.refusals import refuse, unless_refused
from celery_kit.profile import Profile, of_an_app

logger = logging.getLogger(__name__)


def general(profile: Profile) -> dict[str, Any]:
    """Celery's settings, in Celery's own names, whatever the rooms; and the kit's own."""
    late = profile.delivery == "at-least-once"
    return {
        # Nothing accepted is lost: a message is acknowledged after its task, and goes back if the worker dies.
        # DELIVERY=at-most-once trades that for tasks that never run twice.
        "task_acks_late": late,
        "task_reject_on_worker_lost": late,
        # How much a worker keeps from the others for each task that it runs at once. `celery worker --prefetch-multiplier`
        # wins.
        "worker_prefetch_multiplier": profile.prefetch_multiplier,
        # auto: the pool's own number, on prefork what the CPU limit allows (celery_kit/pools/table.py)
        "worker_concurrency": profile.concurrency,
        "broker_connection_retry_on_startup": True,  # a worker may start before its broker
        "broker_connection_max_retries": None,  # Celery gives up after 100
        "broker_pool_acquire_timeout": 10.0,  # seconds; Celery waits for ever
        "publish_timeout": profile.publish_timeout,  # the kit's own, celery_kit/produce/publishing.py
        "spool": profile.spool,  # celery_kit/produce/spool.py
        "spool_most": profile.spool_most,  # celery_kit/produce/spool.py
        # No soft limit beside it: prefork starts a hard limit's clock only when the soft one fires, so that a task's own,
        # shorter time_limit would count for nothing (celery/concurrency/asynpool.py, on_timeout_set).
        "task_soft_time_limit": None,
        "task_always_eager": profile.always_eager,  # for tests and a first look: delay() runs the task, and no broker is asked
        "task_track_started": True,  # STARTED tells what runs from what waits
        "result_expires": profile.result_expires,
        "task_serializer": profile.serializer,  # one for all three
        "result_serializer": profile.serializer,  # one for all three
        "event_serializer": profile.serializer,  # one for all three
        "accept_content": list(profile.accept_content),
        "task_compression": profile.task_compression,
        "result_compression": profile.result_compression,
        "beat_scheduler": "celery_kit.observe.beat:Scheduler",  # it tells when each entry ran, and that beat lives
        "beat_max_loop_interval": 10,  # seconds; how often beat shows that it lives
        "worker_hijack_root_logger": False,  # celery_kit/observe/logs.py sets it up
        # What a task prints is a line of the log; a debugger needs it as it is.
        "worker_redirect_stdouts": profile.redirect_stdouts,
        "worker_send_task_events": profile.send_events,  # for Flower; MONITOR=1 turns it on
        "worker_proc_alive_timeout": 30.0,  # seconds; on a busy machine a new child takes longer than Celery's 4
        "log_format": profile.log_format,  # the kit's own, celery_kit/observe/logs.py
        "engine": profile.engine,  # the kit's own, celery_kit/brokers/__init__.py
    }


def fast(profile: Profile) -> dict[str, Any]:
    """The settings that go with the classes of ENGINE=fast."""
    return {
        # One client for all threads or greenlets of a process, where the backend is fit for it (not rpc): Celery's default is
        # one each, and on green pools a connection for every task.
        "result_backend_thread_safe": profile.backend.thread_safe,
    }


@cache
def _of_the_rooms() -> frozenset[str]:
    """The names of all that some room sets."""
    profile = of_an_app(None, None, {})
    of_all = [room.settings for rooms in (brokers.BROKERS, results.BACKENDS) for room in rooms.values()]
    return frozenset(name for settings in (*of_all, fast) for name in settings(profile))


class Defaults(Mapping[str, Any]):
    """The settings of one app. `conf`: all of its settings, these among them."""

    def __init__(self, conf: Any) -> None:
        self.conf = conf
        self.environ = usable(os.environ)
        profile = of_an_app(None, None, self.environ)
        self.general = general(profile) | (profile.signing.settings() if profile.signing else {})
        if self.environ.get("TASK_TIME_LIMIT"):  # else none: the kit ends no task of an app that Celery lets run
            self.general["task_time_limit"] = profile.task_time_limit
        self._known: tuple[Any, dict[str, Any]] = None, {}
        _warn(profile)

    def __getitem__(self, key: str) -> Any:
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

    def rooms(self) -> dict[str, Any]:
        """What the servers of this app need, by what its settings say now."""
        conf = self.conf
        urls = conf.broker_url or "amqp://", conf.result_backend  # as kombu takes none
        chosen = (*urls, conf.engine, conf.task_time_limit, conf.worker_prefetch_multiplier)
        if self._known[0] != chosen:
            self._known = chosen, self._rooms(*chosen)
        return self._known[1]

    def _rooms(self, broker_url: Any, result_backend: Any, chosen: str, limit: float | None, prefetch: int) -> dict[str, Any]:
        broker, backend = brokers.room(broker_url), results.room(result_backend)
        chosen = chosen if chosen in ENGINES else "plain"  # a module of settings may use the name for a thing of its own
        profile = replace(of_an_app(broker, backend, self.environ), engine=chosen)
        if (
            prefetch != self.general["worker_prefetch_multiplier"]
        ):  # the user's, which holds to the letter: celery_kit/engine/prefetch.py
            profile = replace(profile, prefetch=prefetch)
        if limit != self.general.get("task_time_limit"):
            profile = replace(profile, visibility_timeout=_visibility_timeout(int(limit or 0), self.environ))
        several = {OPTIONS: {"engine": chosen}} if brokers.schemes_of(broker_url) & brokers.transports().keys() else {}
        found = broker.settings(profile) if broker else several  # brokers of different rooms
        found |= backend.settings(profile) if backend else {}
        return found | (fast(profile) if chosen == "fast" and backend else {})


def usable(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables that the kit cannot use, each with a warning. Signing is refused: it must not be off
    unseen.
    """
    found = dict(environ)
    while True:
        _, why = unless_refused(lambda: of_an_app(None, None, found))
        if not why:
            return found
        name = next((word for word in re.findall(r"[A-Z][A-Z_]+", why) if word in found), "SECURITY_")
        if name.startswith("SECURITY_"):
            refuse(why)
        logger.warning("celery-kit: %s; the kit goes on without it", why)
        del found[name]


def _visibility_timeout(limit: int, environ: Mapping[str, str]) -> int:
    """For a time limit in seconds; what the environment says where that is longer."""
    found, why = unless_refused(lambda: times.seconds(times.VISIBILITY_TIMEOUT, limit, environ))
    if found is None:
        logger.warning("celery-kit: %s; the kit goes on without it", why)
    return found or times.VISIBILITY_TIMEOUT.of(limit)


@dataclass(frozen=True)
class Contradiction:
    """Settings of the user's with which the kit cannot do what it is there for. `found(conf)`: they are there.

    `line`: what follows, a template of the settings.
    """

    found: Callable[[Any], object]
    line: str


def _held(conf: Any) -> Any:
    return (conf.broker_transport_options or {}).get("visibility_timeout")


CONTRADICTIONS = (
    Contradiction(
        lambda conf: conf.engine not in ENGINES,
        "engine={engine!r} is none of the kit's engines, fast and plain: Celery's own transports and result writes are used",
    ),
    Contradiction(
        lambda conf: not conf.task_acks_late and conf.engine == "fast",
        "task_acks_late=False: a worker that dies loses what it runs, and the fast engine runs these tasks as Celery does",
    ),
    Contradiction(
        lambda conf: conf.task_acks_late and not conf.task_reject_on_worker_lost,
        "task_reject_on_worker_lost={task_reject_on_worker_lost}: a task whose child process dies fails, and is not run again",
    ),
    Contradiction(
        lambda conf: _held(conf) and conf.task_time_limit and _held(conf) <= conf.task_time_limit,
        "broker_transport_options' visibility_timeout is not longer than task_time_limit={task_time_limit}: "
        "a task would run again while it still runs",
    ),
    Contradiction(
        lambda conf: (conf.broker_transport_options or {}).get("confirm_publish") is False,
        "confirm_publish=False: a task that the broker does not take is lost without an error",
    ),
)


class _Settings(dict[str, Any]):
    """For a line's template."""

    def __init__(self, conf: Any) -> None:
        self.conf = conf

    def __missing__(self, name: str) -> Any:
        return self.conf[name]


def contradictions(conf: Any) -> list[str]:
    """A line for each that an app's settings have."""
    return [one.line.format_map(_Settings(conf)) for one in CONTRADICTIONS if one.found(conf)]


def _tell(conf: Any, **_: Any) -> None:
    for line in contradictions(conf):
        logger.warning("celery-kit: %s", line)


def _warn(profile: Profile) -> None:
    if profile.delivery != "at-least-once":
        logger.warning(
            "celery-kit: DELIVERY=at-most-once: a task that has begun never runs again; if its worker dies, it is lost"
        )
    if not profile.signing and "pickle" in {profile.serializer, *profile.accept_content}:
        logger.warning(
            "celery-kit: pickle is on: whoever can write to the broker or the results server can run any code in this process"
        )


def connect(app: Any) -> None:
    """Have the settings of `app` end in these, each time that it reads them."""
    app.on_after_configure.connect(_add, weak=False)
    signals.celeryd_after_setup.connect(_tell, weak=False)
    if app.configured:  # they are read again where an object is named for them later
        _add(app)


def _add(sender: Any, **_: Any) -> None:
    conf = sender.conf
    found = Defaults(conf)
    conf.maps.insert(-1, found)  # Celery's own are the last
    conf.defaults.insert(-1, found)
