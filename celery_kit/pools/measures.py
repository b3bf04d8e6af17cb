"""What became of a worker's tasks, by task and queue: how long they waited and ran, and how they ended. Kept in the worker.

The pools count here, in the worker's main process. `celery inspect vitals` reports it (`celery_kit/observe/vitals.py`), and the
exporter serves it to Prometheus. A task's wait lasts from its publication, or from its ETA, to its start. The time of the
publication is the producer's, in the message's header `sent`. A start before that is counted apart: a clock is wrong.
"""

from bisect import bisect_left
from contextlib import AbstractContextManager
from time import time

from billiard import einfo
from billiard.einfo import ExceptionInfo
from celery.exceptions import Ignore, Reject, Retry

from celery_kit.base.correlation import SENT
from celery_kit.base.facts import BOUNDS, Measured
from celery_kit.base.messages import DELAY
from celery_kit.base.types import Callback, WorkerRequest
from celery_kit.base.unpatched import unpatched

#: The most pairs of a task and a queue. Those that come later are counted together, under the name OTHER.
MOST, OTHER = 100, "other"
#: A time that no clock shows, in seconds since the epoch; above it may be infinity.
FAR = 1e12
NUMBER = (int, float)
#: How late a clock may be without being called wrong, in seconds: `sent` is rounded to milliseconds.
ROUNDED = 0.001
#: How billiard pickles an exception; its stubs lack the class.
_WithTraceback: type = vars(einfo)["ExceptionWithTraceback"]
#: The exceptions by which a task ends otherwise than by a failure, and their outcomes.
OUTCOMES: dict[type[BaseException], str] = {Retry: "retried", Reject: "rejected", Ignore: "ignored"}


class Measures:
    """What became of the tasks of a worker since its start."""

    def __init__(self) -> None:
        self._found: dict[tuple[str | None, object], Measured] = {}
        # Nothing waits while it holds the lock, and the one of a green library costs several times as much.
        self._lock: AbstractContextManager[object] = unpatched("_thread").allocate_lock()

    def begins(self, request: WorkerRequest) -> None:
        """Count the wait of a task that starts now."""
        sent = request.request_dict.get(SENT)
        if not isinstance(sent, NUMBER) or not 0 <= sent < FAR:
            return  # sent by another producer than the kit's
        waited = time() - (max(sent, eta.timestamp()) if (eta := request.eta) else sent)
        with self._lock:
            one = self._of(request)
            if waited < -ROUNDED:
                one["early"] += 1
                return
            waits = one["waited"]
            waits[bisect_left(BOUNDS, waited)] += 1
            if waited > 0:
                waits[-1] += waited

    def ends(self, request: WorkerRequest, value: object) -> None:
        """Count a task that has ended. `value`: what a pool calls back with, the trace's three values or an error."""
        outcome, seconds = outcome_of(value)
        with self._lock:
            one = self._of(request)
            ended = one["ended"]
            ended[outcome] = ended.get(outcome, 0) + 1
            if seconds is not None:
                runs = one["ran"]
                runs[bisect_left(BOUNDS, seconds)] += 1
                runs[-1] += seconds

    def report(self) -> list[Measured]:
        """All of it."""
        with self._lock:
            return list(self._found.values())

    def _of(self, request: WorkerRequest) -> Measured:
        delivery = request.delivery_info
        name = request.task.name, delivery.get("routing_key") if delivery else None
        return self._found.get(name) or self._named(*name)

    def _named(self, task: str | None, key: object) -> Measured:
        """Those of a task and a routing key that is seen for the first time, or is not the name of a queue."""
        name = task or "", DELAY.sub("", str(key or ""))
        if one := self._found.get(name):
            return one
        if len(self._found) >= MOST:
            name = OTHER, OTHER
        empty = [0.0] * (len(BOUNDS) + 2)
        new: Measured = {"task": name[0], "queue": name[1], "waited": [*empty], "ran": [*empty], "ended": {}, "early": 0}
        return self._found.setdefault(name, new)


def outcome_of(value: object) -> tuple[str, float | None]:
    """How a task has ended, and its run time in seconds if it succeeded."""
    if isinstance(value, tuple) and len(value) == 3:
        failed, found, seconds = value
        if not failed:
            return "succeeded", seconds
    else:
        found = value
    if not isinstance(found, ExceptionInfo):
        return "terminated", None
    error = found.exception
    if isinstance(error, _WithTraceback):
        error = getattr(error, "exc", error)
    return next((name for kind, name in OUTCOMES.items() if isinstance(error, kind)), "failed"), None


def request_of(callback: object) -> WorkerRequest | None:
    """The request whose method a pool got as a callback; None if it came from another caller than Celery."""
    request: WorkerRequest | None = getattr(callback, "__self__", None)
    return request if hasattr(request, "request_dict") else None


def accepting(request: WorkerRequest, accept: Callback | None) -> Callback:
    """An accept callback that counts the task's start, and calls `accept`."""

    def accepted(*when: object) -> None:
        measures.begins(request)
        if accept:
            accept(*when)

    return accepted


def ending(request: WorkerRequest, callback: Callback | None) -> Callback:
    """A callback that counts the task's end, and calls `callback`."""

    def ended(value: object) -> object:
        measures.ends(request, value)
        return callback(value) if callback else None

    return ended


#: This process's.
measures = Measures()
