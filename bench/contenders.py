"""The table of contenders: how each sends, how its worker starts, how its results are counted."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.report import HOST, MONITORED, WARNING
from celery_kit.pools.table import POOLS
from testbed import deployed
from testbed.environments import NEWER_PEERS, PEERS, WORKERS
from testbed.places import Place

#: The interpreter of the workers and producers.
PYTHON = WORKERS.command("python")

#: The concurrency of one worker: with greenlets, and with threads or processes.
GREENLETS, OTHERS = 50, 2
CORES = os.cpu_count() or 1


def stored(place: Place, _: int) -> int:
    """The number of results, for contenders that store each under its own key."""
    return int(place.results.dbsize())


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    `send`: the command that sends; NUMBER WORK BYTES are appended. `worker(pool, number)`: the command of the `number`th
    worker. `environ(place)`: environment variables of both. `most`: how many tasks are sent for a round; more would only cost
    time. `done(place, sent)`: how many have a result. `brokers`: those that it supports; empty: all.
    """

    name: str
    send: list[str]
    worker: Callable[[str, int], list[str]]
    environ: Callable[[Place], Mapping[str, str]]
    most: int
    done: Callable[[Place, int], int] = stored
    brokers: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    #: read(place): the number of results with the state SUCCESS, each read back.
    read: Callable[[Place], int] | None = None
    #: Its workers run as a stack runs them: in containers of its service `worker`; and with the services of MONITOR=1.
    contained: bool = False
    monitored: bool = False


def succeeded(place: Place) -> int:
    """The number of Celery's results with the state SUCCESS, each read back."""
    names = list(place.results.scan_iter("celery-task-meta-*", count=10_000))
    kept = [one for start in range(0, len(names), 1_000) for one in place.results.mget(names[start : start + 1_000])]
    return sum(json.loads(one)["status"] == "SUCCESS" for one in kept if one)


def _celery(place: Place) -> dict[str, str]:
    return {"CELERY_BROKER_URL": place.broker_url, "CELERY_RESULT_BACKEND": place.results_url}


def _peer(place: Place) -> dict[str, str]:
    return {"BROKER_URL": place.broker_url, "RESULTS_URL": place.results_url, "RQ_REDIS_URL": place.broker_url}


def _size(pool: str) -> list[str]:
    most = GREENLETS if POOLS[pool].sockets_patched else OTHERS
    return ["--concurrency", str(min(POOLS[pool].concurrency or most, most))]


def _options(pool: str, number: int) -> list[str]:
    """The options of a worker, at the log level of the stacks. Celery's documentation starts its workers with the same.

    The node name is unique: on RabbitMQ a second worker of the same name cannot consume.
    """
    return ["-n", f"bench{number}@%h", "-l", "INFO", "-Q", "bench", *_size(pool)]


def _plain(pool: str, number: int) -> list[str]:
    return [PYTHON, "-m", "celery", "-A", "bench.plain", "worker", "-P", pool, *_options(pool, number)]


def _kit(engine: str, most: int) -> Contender:
    def worker(pool: str, number: int) -> list[str]:
        return [PYTHON, "-m", "app.worker", "-I", "bench.celerys", *_options(pool, number)]

    def environ(place: Place) -> dict[str, str]:
        return deployed.environment() | _celery(place)

    return Contender(
        f"celery-kit {engine}", [PYTHON, "-m", "bench.kit"], worker, environ, most, settings={"ENGINE": engine}, read=succeeded
    )


def _left(key: str, command: str) -> Callable[[Place, int], int]:
    """The number of tasks that have left the queue. Results cannot be counted, because they are among other keys."""
    return lambda place, sent: sent - int(getattr(place.redis, command)(key))


def _read(stream: str) -> Callable[[Place, int], int]:
    """The number of entries of a stream that were delivered and acknowledged."""
    return lambda place, _: sum((one["entries-read"] or 0) - one["pending"] for one in place.redis.xinfo_groups(stream))


def _peers() -> list[Contender]:
    def python(name: str) -> list[str]:
        return [PEERS.command("python"), "-m", f"bench.peers.{name}"]

    def tool(*argv: Any) -> Callable[[str, int], list[str]]:
        return lambda *_: [PEERS.command(argv[0]), *map(str, argv[1:])]

    def newer(*argv: Any) -> Callable[[str, int], list[str]]:
        return lambda *_: [NEWER_PEERS.command(argv[0]), *map(str, argv[1:])]

    def module(name: str) -> list[str]:
        return newer("python", "-m", f"bench.peers.{name}")("", 0)

    redis, both = ("redis",), ("redis", "rabbitmq")

    def dramatiq(processes: int) -> Contender:
        worker = tool("dramatiq", "bench.peers.dramatiqs", "--processes", processes, "--threads", 8)
        return Contender(f"dramatiq, {processes} processes", python("dramatiqs"), worker, _peer, 20_000, brokers=both)

    return [
        dramatiq(CORES),
        dramatiq(2 * CORES),
        Contender(
            "huey", python("hueys"), tool("huey_consumer", "bench.peers.hueys.huey", "-k", "process", "-w", CORES, "-q"),
            _peer, 20_000, lambda place, _: int(place.redis.hlen("huey.results.bench")), redis,
        ),
        Contender(
            "taskiq", python("taskiqs"), tool("taskiq", "worker", "bench.peers.taskiqs:broker", "--workers", CORES),
            _peer, 15_000, brokers=both,
        ),
        Contender(
            "arq", python("arqs"), tool("arq", "bench.peers.arqs.Worker"), _peer, 8_000, _left("arq:queue", "zcard"), redis
        ),
        Contender(
            "rq", python("rqs"), tool("rq", "worker-pool", "bench", "-n", CORES, "-w", "rq.SimpleWorker", "-q"), _peer, 4_000,
            _left("rq:queue:bench", "llen"), redis,
        ),
        Contender(
            "streaq", module("streaqs"), newer("streaq", "run", "bench.peers.streaqs:worker", "--workers", CORES),
            _peer, 10_000, lambda place, _: int(place.redis.zcard("streaq:bench:index:results")), redis,
        ),
        Contender(
            "saq", module("saqs"), newer("saq", "bench.peers.saqs.settings", "--workers", CORES, "-v"),
            _peer, 10_000, _left("saq:bench:queued", "llen"), redis,
        ),
        Contender(
            "faststream, no results", module("faststreams"),
            newer("faststream", "run", "bench.peers.faststreams:app", "--workers", CORES), _peer, 15_000, _read("bench"), redis,
        ),
        Contender(
            "repid, no results", module("repids"), newer("python", "-m", "bench.peers.repids", CORES),
            _peer, 15_000, _read("repid:bench"), redis,
        ),
    ]  # fmt: skip


def otherwise(name: str, environ: Mapping[str, str], *options: str) -> Contender:
    """The kit's worker with one choice changed."""
    settings = {**FAST.settings, **environ}
    return replace(FAST, name=name, settings=settings, worker=lambda pool, number: [*FAST.worker(pool, number), *options])


PLAIN = Contender("plain Celery", [PYTHON, "-m", "bench.plain"], _plain, _celery, 6_000, read=succeeded)
SETTINGS = _kit("plain", 8_000)
FAST = _kit("fast", 30_000)
CELERYS = (PLAIN, SETTINGS, FAST)
#: Choices of the kit that cost or gain speed, each changed, by the name of the setting that a user would write.
OTHERWISE = (
    otherwise("WORKER_PREFETCH_MULTIPLIER=1", {"WORKER_PREFETCH_MULTIPLIER": "1"}),
    otherwise("DELIVERY=at-most-once", {"DELIVERY": "at-most-once"}),
    otherwise("task_track_started=False", {}, "--", "task.track_started=0"),
    otherwise("WORKER_SEND_TASK_EVENTS=1", {"WORKER_SEND_TASK_EVENTS": "1"}),
    otherwise("LOGLEVEL=WARNING", {}, "--loglevel", "WARNING"),
    otherwise("USE_FAST_LOCALS off", {"USE_FAST_LOCALS": ""}),
)


def in_containers(contender: Contender, name: str, *options: str, **more: Any) -> Contender:
    """The same workers as a stack runs them, which gives them their environment."""

    def worker(pool: str, number: int) -> list[str]:
        return ["python", *contender.worker(pool, number)[1:], *options]

    return replace(contender, name=name, worker=worker, environ=_celery, contained=True, **more)


#: What `make up` starts beside plain Celery in the same container, and what each of its choices costs.
DEPLOYED = (
    in_containers(PLAIN, PLAIN.name),
    in_containers(FAST, FAST.name),
    in_containers(FAST, WARNING, "--loglevel", "WARNING"),
    in_containers(FAST, MONITORED, settings={**FAST.settings, "WORKER_SEND_TASK_EVENTS": "1"}, monitored=True),
    replace(FAST, name=HOST),
)
PEER_ROWS = tuple(_peers())
