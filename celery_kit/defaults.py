"""What every app of the kit has where its user names nothing else: the settings above Celery's own and below the user's.

They follow the app's `broker_url` and `result_backend`, whenever and wherever those are named; the environment chooses the
rest, by the variables of `celery_kit/profile.py`. A server that the kit has no room for gets what is the same for all.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

from celery import Celery

from celery_kit import brokers, results
from celery_kit.base import times
from celery_kit.base.choices import ENGINES
from celery_kit.base.conf import OPTIONS
from celery_kit.base.refusals import choose
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
        # One number bounds a task; the stack's stop grace period and the broker's redelivery follow from it.
        "task_time_limit": profile.task_time_limit,
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
        profile = of_an_app(None, None)
        self.general = general(profile) | (profile.signing.settings() if profile.signing else {})
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
        profile = replace(of_an_app(broker, backend), engine=choose("engine", chosen, ENGINES))
        if (
            prefetch != self.general["worker_prefetch_multiplier"]
        ):  # the user's, which holds to the letter: celery_kit/engine/prefetch.py
            profile = replace(profile, prefetch=prefetch)
        if limit != self.general["task_time_limit"]:
            profile = replace(profile, visibility_timeout=times.seconds(times.VISIBILITY_TIMEOUT, int(limit or 0), os.environ))
        several = {OPTIONS: {"engine": chosen}} if brokers.schemes_of(broker_url) & brokers.transports().keys() else {}
        found = broker.settings(profile) if broker else several  # brokers of different rooms
        found |= backend.settings(profile) if backend else {}
        return found | (fast(profile) if chosen == "fast" and backend else {})


def _warn(profile: Profile) -> None:
    if profile.delivery != "at-least-once":
        logger.warning(
            "celery-kit: DELIVERY=at-most-once: a task that has begun never runs again; if its worker dies, it is lost"
        )
    if not profile.signing and "pickle" in {profile.serializer, *profile.accept_content}:
        logger.warning(
            "celery-kit: pickle is on: whoever can write to the broker or the results server can run any code in this process"
        )


def connect(app: Celery) -> None:
    """Have the settings of `app` end in these, each time that it reads them."""
    app.on_after_configure.connect(_add, weak=False)


def _add(sender: Celery, **_: Any) -> None:
    conf: Any = sender.conf
    found = Defaults(conf)
    conf.maps.insert(-1, found)  # Celery's own are the last
    conf.defaults.insert(-1, found)
