"""Common parts of the backends' result consumers: a `get()` that gives up leaves nothing behind.

Celery 5.7.0 drops a result when it arrives. A result whose `get()` timed out, or was interrupted, stays subscribed and in
memory for the life of the process. A result whose subscription failed counts as subscribed, so that the next `get()` waits in
vain. Source: celery/backends/asynchronous.py, _add_pending_result: "a get() that timed out keeps its result object alive". Can
go when tests/compat/test_results.py::test_who_gives_up_leaves_nothing_behind passes for plain Celery.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, Protocol

from celery_kit.base.types import Callback, ResultBackend

if TYPE_CHECKING:
    from typing_extensions import TypeIs
    from upstream.celery_results import ResultConsumer
else:
    ResultConsumer = object


class Promise(Protocol):
    """vine.promise, as far as it is used here."""

    @property
    def listeners(self) -> Sequence[object]:
        """What it calls when it is fulfilled."""


class TaskResult(Protocol):
    """An AsyncResult, with what waiting for it needs."""

    id: str
    #: The task's final state, once it is known.
    _cache: object
    #: The promise that its `then` adds callbacks to.
    on_ready: Promise


class TaskResults(Protocol):
    """A ResultSet, or a GroupResult."""

    results: Sequence["TaskResult | TaskResults"]
    on_ready: Promise


class ReadTimeouts(ResultConsumer):
    """A mixin for a ResultConsumer, before Celery's class: a read that has timed out is no lost connection.

    Celery 5.6 connects again then, and what the former connection has received is lost.
    """

    @contextmanager
    def reconnect_on_error(self) -> Iterator[None]:
        """Connect again if the connection is lost within the block. A TimeoutError of the block is raised."""
        late: TimeoutError | None = None
        with super().reconnect_on_error():
            try:
                yield
            except TimeoutError as error:
                late = error
        if late:
            raise late


class Waits(ResultConsumer):
    """A mixin for a ResultConsumer, before Celery's class."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self._lock_of_waits = Lock()
        self._waits: dict[int, int] = {}  # number of waits, by the identity of a result

    def _wait_for_pending(self, result: TaskResult | TaskResults, **options: object) -> Iterator[object]:
        awaited = [one for one in _leaves(result) if not one._cache]
        with self._lock_of_waits:
            for one in awaited:
                self._waits[id(one)] = self._waits.get(id(one), 0) + 1
        try:
            # Another thread may just have given up. And Celery subscribes a group's members when it is made, and never again.
            if missing := [one for one in awaited if not one._cache and not self._is_pending(one)]:
                self.backend.add_pending_results(missing)
            yield from super()._wait_for_pending(result, **options)
        finally:
            with self._lock_of_waits:
                for one in awaited:
                    if waits := self._waits.pop(id(one)) - 1:
                        self._waits[id(one)] = waits
                    elif self._is_pending(one) and (one._cache or not _is_awaited_elsewhere(one, result)):
                        self.backend.remove_pending_result(one)

    def _is_pending(self, one: TaskResult) -> bool:
        return any(id(one) in mapping.get(one.id, ()) for mapping in self._pending_results)


def listen(backend: ResultBackend, consumer: Callback) -> None:
    """Give `backend` a new result consumer, of the class `consumer`."""
    pending = backend._pending_results, backend._pending_messages
    backend.result_consumer = consumer(backend, backend.app, backend.accept, *pending)
    celerys: Callback = type(backend).add_pending_result

    def add_pending_result(result: TaskResult, *args: object, **options: object) -> object:
        try:
            return celerys(backend, result, *args, **options)
        except BaseException:
            backend.remove_pending_result(result)
            raise

    backend.add_pending_result = add_pending_result


def listen_again(backend: ResultBackend) -> None:
    """In a forked child: give `backend` a new result consumer, without the results that the parent waits for.

    Greenlets that wait by the old consumer stop waiting.
    """
    old = backend.result_consumer
    if stopped := getattr(old.drainer, "_stopped", None):
        stopped.set()
    listen(backend, type(old))
    for mapping in backend._pending_results:
        mapping.clear()
    backend._pending_messages.clear()
    backend._pending_messages.total = 0


def _is_one(result: TaskResult | TaskResults) -> "TypeIs[TaskResult]":
    return hasattr(result, "_cache")


def _leaves(result: TaskResult | TaskResults) -> Iterator[TaskResult]:
    """The results of single tasks in a result, which may be a group's."""
    if _is_one(result):
        yield result
    else:
        for one in result.results:
            yield from _leaves(one)


def _is_awaited_elsewhere(one: TaskResult, waited_for: TaskResult | TaskResults) -> bool:
    """Whether a callback (`then`) waits for the result, or for a group with it."""
    groups = getattr(waited_for, "_on_full", None)
    if one is not waited_for and any(waited_for.on_ready.listeners):
        return True
    return any(listener is not None and listener is not groups for listener in one.on_ready.listeners)
