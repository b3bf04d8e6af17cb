"""Prometheus metrics on port 9808: the facts of `make status`, and how long tasks wait and run.

Run it by `python -m celery_kit.operate.look.exporter`. Each scrape queries the servers and workers, for at most a second.
Nothing is stored. A solo worker answers only between tasks, so alert rules need a delay (`for`).
"""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from celery_kit.base.facts import BOUNDS, Measured, Server
from celery_kit.operate.look.status import Snapshot, snapshot

PORT = 9808
#: Fields of a worker's report that are exported as metrics, with their help texts.
OF_A_WORKER: tuple[tuple[Literal["active", "reserved", "processed", "memory"], str], ...] = (
    ("active", "Tasks that run"),
    ("reserved", "Tasks taken and not begun"),
    ("processed", "Tasks taken since its start"),
    ("memory", "Memory, in bytes"),
)


def gauge(name: str, what: str, samples: Sequence[tuple[dict[str, str], float | None]]) -> Metric:
    """A gauge named `celery_kit_` + `name`, with the help text `what`. Each sample is its labels and its value.

    Samples with the value None are omitted.
    """
    labels = list(samples[0][0]) if samples else []
    family = GaugeMetricFamily(f"celery_kit_{name}", what, labels=labels)
    for named, value in samples:
        if value is not None:
            family.add_metric([named[label] for label in labels], value)
    return family


def histogram(name: str, what: str, measured: Sequence[tuple[dict[str, str], list[float]]]) -> Metric:
    """A histogram, of labels and :class:`Measured` numbers."""
    labels = list(measured[0][0]) if measured else []
    family = HistogramMetricFamily(f"celery_kit_{name}", what, labels=labels)
    bounds = [*map(str, BOUNDS), "+Inf"]
    for named, (*numbers, total) in measured:
        family.add_metric(list(named.values()), list(zip(bounds, accumulate(numbers), strict=True)), total)
    return family


def counter(name: str, what: str, samples: Sequence[tuple[dict[str, str], int]]) -> Metric:
    """A counter. Each sample is its labels and its value."""
    family = CounterMetricFamily(f"celery_kit_{name}", what, labels=list(samples[0][0]) if samples else [])
    for named, value in samples:
        family.add_metric(list(named.values()), value)
    return family


def of_tasks(found: Snapshot) -> Iterator[Metric]:
    """What became of tasks, by the worker that counted it, so that each counter starts again only with its worker."""
    each: list[tuple[dict[str, str], Measured]] = [
        ({"worker": node, "task": one["task"], "queue": one["queue"]}, one)
        for node, answer in found.workers.items()
        for one in answer["measures"] or ()
    ]
    yield histogram("task_wait_seconds", "From publication, or ETA, to start", [(k, m["waited"]) for k, m in each])
    yield histogram("task_run_seconds", "Run time of tasks that succeeded", [(k, m["ran"]) for k, m in each])
    ended = [(labels | {"outcome": name}, number) for labels, one in each for name, number in one["ended"].items()]
    yield counter("tasks", "Tasks that ended", ended)
    yield counter("task_early", "Tasks that began before they were sent: a clock is wrong", [(k, m["early"]) for k, m in each])


def metrics(found: Snapshot) -> Iterator[Metric]:
    """All metrics of a snapshot. `results_up` has no value if the results server cannot be queried."""
    yield gauge("broker_up", "1: the broker answers", [({}, float(isinstance(found.broker, Server)))])
    unasked = isinstance(found.results, Server) and not found.results.version
    results = None if unasked else float(not isinstance(found.results, str))
    yield gauge("results_up", "1: the results server answers", [({}, results)])
    broker = found.broker if isinstance(found.broker, Server) else None
    queues = broker.queues if broker else []
    yield gauge("delayed", "Tasks that wait in the broker for their ETA", [({}, broker.delayed if broker else None)])
    consumed = Counter(queue for answer in found.workers.values() for queue in answer["consuming"] or ())
    for name, what in (("waiting", "Messages that wait"), ("unacknowledged", "Messages that workers hold")):
        yield gauge(f"queue_{name}", what, [({"queue": queue.name}, getattr(queue, name)) for queue in queues])
    yield gauge("queue_oldest_seconds", "Since the next message was sent", [({"queue": q.name}, q.oldest) for q in queues])
    paused = [({"queue": q.name}, None if q.paused is None else float(q.paused)) for q in queues]
    yield gauge("queue_paused", "1: paused, so that no worker begins its tasks", paused)
    yield gauge("queue_workers", "Workers that consume it", [({"queue": q.name}, consumed[q.name]) for q in queues])
    working = sum(bool(a["consuming"] or a["paused"]) for a in found.workers.values())
    yield gauge("workers", "Workers that consume something, or whose queues are paused", [({}, working)])
    for field, what in OF_A_WORKER:
        answers = [({"worker": node, "pool": answer["pool"] or ""}, answer[field]) for node, answer in found.workers.items()]
        yield gauge(f"worker_{field}", what, answers)
    versions = [
        ({"worker": node, "pool": answer["pool"] or "", "version": answer["version"] or ""}, 1.0)
        for node, answer in found.workers.items()
    ]
    yield gauge("worker_version", "Always 1; the version of a worker's code is a label", versions)
    yield from of_tasks(found)
    if file := os.environ.get("BEAT_HEARTBEAT_FILE"):
        path = Path(file)
        silent = time.time() - path.stat().st_mtime if path.exists() else float("inf")
        yield gauge("beat_silent_seconds", "Since beat's last round", [({}, silent)])


class Look(Collector):
    """Takes a snapshot for each scrape."""

    def collect(self) -> Iterator[Metric]:
        """The metrics of a new snapshot. Called by prometheus_client at each scrape."""
        yield from metrics(snapshot())


def main() -> None:
    """Serve the metrics until the process is stopped."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Look())
    start_http_server(PORT, registry=registry)
    threading.Event().wait()


if __name__ == "__main__":
    main()
