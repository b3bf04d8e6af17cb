"""The user's choices, except for broker, result backend and pool (celery_kit/profile.py): the environment, read and checked.

A variable has the name of Celery's setting in capitals (TIMEZONE, TASK_TIME_LIMIT …).
"""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from celery_kit.base import times
from celery_kit.base.refusals import choose, refuse, whole_number
from celery_kit.base.security import Signing
from celery_kit.base.sizes import message_most

SERIALIZERS = ("json", "yaml", "msgpack", "pickle")
DELIVERIES = ("at-least-once", "at-most-once")
#: Names of kombu.compression, which has gzip as a second name of zlib.
COMPRESSIONS = ("zlib", "bzip2", "lzma", "brotli", "zstd")
#: fast: the kit's own transports and result writes; plain: Celery's and kombu's. Each reads the other's messages.
ENGINES = ("fast", "plain")
LOG_FORMATS = ("json", "text")
#: TLS between all parts of a stack: 1: the servers show certificates; mutual: everybody else does, too.
SECURE = ("1", "mutual")
#: Celery's word, from 5.7 on, for as many tasks at once as fit the pool.
AUTO = "auto"
#: The time limit of this project's own tasks, in seconds. An app of the user's own has none unless it is set.
TASK_TIME_LIMIT = 300
#: A version: the end of an image's tag, and of the name of a queue.
VERSION = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}"
#: A server's address.
PLACE = r"[^\s=:,]+:[0-9]{1,5}"
#: The largest concurrency of a worker, in tasks at once.
MOST_CONCURRENCY = 10_000


@dataclass(frozen=True)
class Choices:
    """The choices that apply to every combination. Times are in seconds."""

    engine: str
    timezone: str
    task_time_limit: int
    max_deliveries: int
    message_most: int
    failed_most: int
    failed_expires: int
    visibility_timeout: int
    lease: int
    delivery: str
    result_expires: int
    serializer: str
    accept_content: tuple[str, ...]
    task_compression: str | None
    result_compression: str | None
    signing: Signing | None
    concurrency: int | str
    prefetch: int | None
    report_every: int
    send_events: bool
    always_eager: bool
    redirect_stdouts: bool
    log_format: str
    data_dir: Path
    secure: str
    beats: int
    publish_timeout: int
    spool: Path | None
    spool_most: int
    app_version: str
    queue_version: str
    addresses: Mapping[str, str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ, limit: int = TASK_TIME_LIMIT) -> "Choices":
        """Read the environment. Refuses an invalid value: one line, exit code 2.

        `limit`: the time limit of tasks if TASK_TIME_LIMIT is not set, in seconds; 0: they have none.
        """

        def value(name: str, default: str) -> str:
            return environ.get(name) or default

        serializer = choose("TASK_SERIALIZER", value("TASK_SERIALIZER", "json"), SERIALIZERS)
        accepted = value("ACCEPT_CONTENT", serializer).replace(" ", "").split(",")
        prefetch = value("WORKER_PREFETCH_MULTIPLIER", "")
        limit = task_time_limit(environ, limit)
        for derived in (times.STOP_GRACE_PERIOD, times.CONSUMER_TIMEOUT):
            times.seconds(derived, limit, environ)
        lease = worker_lease(environ)
        held = times.seconds(times.VISIBILITY_TIMEOUT, limit, environ, lease)
        return cls(
            engine=choose("ENGINE", value("ENGINE", "fast"), ENGINES),
            timezone=_timezone(value("TIMEZONE", "UTC")),
            task_time_limit=limit,
            max_deliveries=max_deliveries(environ),
            message_most=message_most(environ),
            failed_most=whole_number("FAILED_MOST", value("FAILED_MOST", "10000"), 0, 1_000_000, "tasks"),
            failed_expires=whole_number("FAILED_EXPIRES", value("FAILED_EXPIRES", "604800"), 1, 31_536_000, "seconds"),
            visibility_timeout=held,
            lease=lease,
            delivery=choose("DELIVERY", value("DELIVERY", DELIVERIES[0]), DELIVERIES),
            result_expires=whole_number("RESULT_EXPIRES", value("RESULT_EXPIRES", "86400"), 0, 31_536_000, "seconds"),
            serializer=serializer,
            accept_content=tuple(choose("ACCEPT_CONTENT", name, SERIALIZERS) for name in accepted),
            task_compression=_compression("TASK_COMPRESSION", environ),
            result_compression=_compression("RESULT_COMPRESSION", environ),
            signing=Signing.from_environ(environ),
            concurrency=_concurrency(value("WORKER_CONCURRENCY", AUTO)),
            prefetch=whole_number("WORKER_PREFETCH_MULTIPLIER", prefetch, 1, MOST_CONCURRENCY) if prefetch else None,
            report_every=whole_number("REPORT_EVERY", value("REPORT_EVERY", "0"), 0, 86_400, "seconds"),
            send_events=choose("WORKER_SEND_TASK_EVENTS", value("WORKER_SEND_TASK_EVENTS", "0"), ("0", "1")) == "1",
            always_eager=choose("TASK_ALWAYS_EAGER", value("TASK_ALWAYS_EAGER", "0"), ("0", "1")) == "1",
            redirect_stdouts=choose("WORKER_REDIRECT_STDOUTS", value("WORKER_REDIRECT_STDOUTS", "1"), ("0", "1")) == "1",
            log_format=choose("LOG_FORMAT", value("LOG_FORMAT", "text"), LOG_FORMATS),
            data_dir=data_dir(environ),
            secure=secure(environ),
            beats=beats(environ),
            publish_timeout=whole_number("PUBLISH_TIMEOUT", value("PUBLISH_TIMEOUT", "10"), 1, 3_600, "seconds"),
            spool=_spool(value("SPOOL", "")),
            spool_most=whole_number("SPOOL_MOST", value("SPOOL_MOST", "10000"), 1, 10_000_000, "tasks"),
            app_version=_version("APP_VERSION", value("APP_VERSION", "")),
            queue_version=_version("QUEUE_VERSION", value("QUEUE_VERSION", "")),
            addresses=_addresses(value("ADDRESSES", "")),
        )


def task_time_limit(environ: Mapping[str, str] = os.environ, default: int = TASK_TIME_LIMIT) -> int:
    """The longest time that a task may run, in seconds; 0: no limit. `default`: for an environment without TASK_TIME_LIMIT."""
    given = environ.get("TASK_TIME_LIMIT")
    return whole_number("TASK_TIME_LIMIT", given, 0, 86_400, "seconds") if given else default


def worker_lease(environ: Mapping[str, str] = os.environ) -> int:
    """Seconds without a sign of life after which a worker counts as dead, on brokers that do not notice that themselves."""
    return whole_number("WORKER_LEASE", environ.get("WORKER_LEASE") or "15", 3, 3_600, "seconds")


def stop_grace(environ: Mapping[str, str] = os.environ) -> int:
    """How long a worker of this project's stacks may take to stop, in seconds: more than the longest task takes."""
    return times.seconds(times.STOP_GRACE_PERIOD, task_time_limit(environ), environ)


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder that tasks read and write."""
    return Path(environ.get("DATA_DIR") or ".kit/data").resolve()


def beats(environ: Mapping[str, str] = os.environ) -> int:
    """How many beats a stack has. Of several, one leads (celery_kit/produce/beats.py)."""
    return whole_number("BEATS", environ.get("BEATS") or "1", 1, 9)


def secure(environ: Mapping[str, str] = os.environ) -> str:
    """One of :data:`SECURE`, or empty: the stack does without TLS."""
    given = environ.get("SECURE")
    return choose("SECURE", given, SECURE) if given else ""


def max_deliveries(environ: Mapping[str, str] = os.environ) -> int:
    """How often a message may be delivered without being acknowledged. At most 20, the limit of RabbitMQ 4 itself."""
    return whole_number("MAX_DELIVERIES", environ.get("MAX_DELIVERIES") or "20", 1, 20)


def engine_without(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The parts that the fast engine is to leave out, by name (celery_kit/engine/parts.py)."""
    return tuple((environ.get("ENGINE_WITHOUT") or "").replace(",", " ").split())


def report_bytes(environ: Mapping[str, str] = os.environ) -> int:
    """How many bytes a day the file of task runs may take (celery_kit/observe/runs.py); 0: no file is written."""
    return 1_000_000 * whole_number("REPORT_MEGABYTES", environ.get("REPORT_MEGABYTES") or "0", 0, 1_000_000, "megabytes a day")


def _concurrency(given: str) -> int | str:
    """A number of tasks, or "auto", Celery's word for the pool's default (celery_kit/pools/table.py)."""
    if is_auto(given):
        return AUTO
    return whole_number("WORKER_CONCURRENCY", given, 1, MOST_CONCURRENCY, f"tasks, or {AUTO}")


def is_auto(concurrency: object) -> bool:
    """Whether a worker's concurrency is "auto", Celery's word for the pool's default."""
    return isinstance(concurrency, str) and concurrency.strip().lower() == AUTO


def _compression(name: str, environ: Mapping[str, str]) -> str | None:
    given = environ.get(name)
    return choose(name, given, COMPRESSIONS) if given else None


def _spool(given: str) -> Path | None:
    if given and sys.platform == "win32":
        refuse("SPOOL cannot be had on Windows: it needs file locks of Linux or macOS (docs/pools.md); leave it out")
    return Path(given).resolve() if given else None


def _addresses(given: str) -> Mapping[str, str]:
    pairs = [one.partition("=") for one in given.replace(" ", "").split(",") if one]
    for place, _, instead in pairs:
        if not (re.fullmatch(PLACE, place) and re.fullmatch(PLACE, instead)):
            refuse(f"ADDRESSES={given} is not allowed; pairs of host:port=host:port, between commas")
    return {place: instead for place, _, instead in pairs}


def _version(name: str, given: str) -> str:
    if given and not re.fullmatch(VERSION, given):
        refuse(f"{name}={given} is not allowed; letters, digits, _, . and -, 80 at most")
    return given


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError):
        refuse(f"TIMEZONE={name} is not known; allowed: names of the tz database, such as UTC or Europe/Berlin")
    return name
