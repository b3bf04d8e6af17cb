"""What the backends' consumers of results have in common: whoever gives up waiting leaves nothing behind.

Celery 5.7.0 lets go of a result when it comes. One whose `get()` ran into its timeout, or was interrupted, stays subscribed to
and in memory for as long as the process lives; and one that could not be subscribed to counts as if it were, so that the next
`get()` waits in vain. Source: celery/backends/asynchronous.py, _add_pending_result: "a get() that timed out keeps its result
object alive". Can go when tests/compat/test_results.py::test_who_gives_up_leaves_nothing_behind says so of plain Celery.
"""

from collections.abc import Iterator
from threading import Lock
from typing import Any


class Waits:
    """For a ResultConsumer, before Celery's class."""

    backend: Any
    _pending_results: Any

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._lock_of_waits = Lock()
        self._waits: dict[int, int] = {}  # how many, by the identity of a result

    def _wait_for_pending(self, result: Any, **options: Any) -> Iterator[Any]:
        awaited = [one for one in _leaves(result) if not one._cache]
        with self._lock_of_waits:
            for one in awaited:
                self._waits[id(one)] = self._waits.get(id(one), 0) + 1
        try:
            # Another thread may just have given up; and a group's members are taken in when it is made, and never again.
            if missing := [one for one in awaited if not one._cache and not self._is_pending(one)]:
                self.backend.add_pending_results(missing)
            yield from super()._wait_for_pending(result, **options)  # type: ignore[misc]
        finally:
            with self._lock_of_waits:
                for one in awaited:
                    if waits := self._waits.pop(id(one)) - 1:
                        self._waits[id(one)] = waits
                    elif self._is_pending(one) and (one._cache or not _is_awaited_elsewhere(one, result)):
                        self.backend.remove_pending_result(one)

    def _is_pending(self, one: Any) -> bool:
        return any(id(one) in mapping.get(one.id, ()) for mapping in self._pending_results)


def listen(backend: Any, consumer: type[Any]) -> None:
    """Give `backend` a consumer of this class, which knows of nothing that was waited for before."""
    pending = backend._pending_results, backend._pending_messages
    backend.result_consumer = consumer(backend, backend.app, backend.accept, *pending)
    celerys = type(backend).add_pending_result

    def add_pending_result(result: Any, *args: Any, **options: Any) -> Any:
        try:
            return celerys(backend, result, *args, **options)
        except BaseException:
            backend.remove_pending_result(result)
            raise

    backend.add_pending_result = add_pending_result


def listen_anew(backend: Any) -> None:
    """The same in a forked child, whose parent goes on waiting. What greenlets still wait by the old one ends."""
    old = backend.result_consumer
    if stopped := getattr(old.drainer, "_stopped", None):
        stopped.set()
    listen(backend, type(old))
    for mapping in backend._pending_results:
        mapping.clear()
    backend._pending_messages.clear()
    backend._pending_messages.total = 0


def _leaves(result: Any) -> Iterator[Any]:
    """The results of single tasks in it."""
    if hasattr(result, "_cache"):
        yield result
    else:
        for one in result.results:
            yield from _leaves(one)


def _is_awaited_elsewhere(one: Any, waited_for: Any) -> bool:
    """Somebody has asked to be called (`then`) when it comes: by itself, or with a group."""
    groups = getattr(waited_for, "_on_full", None)
    if one is not waited_for and any(waited_for.on_ready.listeners):
        return True
    return any(listener is not None and listener is not groups for listener in one.on_ready.listeners)
