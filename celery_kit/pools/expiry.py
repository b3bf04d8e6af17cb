"""On pools of threads and greenlets a task that expires while it waits within its worker does not run.

Celery looks at a task's expiry when its message comes, and on prefork again when a process is free. A pool of threads or
greenlets is handed at once all that the worker takes - four messages a place by Celery's default, one more for every delayed
task that it holds - and would run what has expired by then. Here its thread looks once more, as its first step.
Source: celery/worker/request.py 5.7.0, execute_using_pool, maybe_expire. Can go when the matrix' row `expires_in_its_worker`
holds without.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from celery import bootsteps
from celery.utils.time import maybe_make_aware


class Expired(str):
    """In place of a return value: the task did not run."""


def watching(apply_async: Callable[..., Any]) -> Callable[..., Any]:
    """A pool's apply_async, for which a task that has expired by then is revoked, as if it had when its message came."""

    def apply(target: Callable[..., Any], args: Any = (), callback: Any = None, **options: Any) -> Any:
        request: Any = getattr(callback, "__self__", None)
        if getattr(request, "expires", None) is None or not hasattr(request, "_announce_revoked"):
            return apply_async(target, args, callback=callback, **options)

        def run(*args: Any) -> Any:
            expired = datetime.now(UTC) > maybe_make_aware(request.expires)
            return (0, Expired(), 0.0) if expired else target(*args)

        def done(outcome: Any) -> Any:
            if isinstance(outcome[1], Expired):
                return request._announce_revoked("expired", False, None, True)
            return callback(outcome)

        return apply_async(run, args, callback=done, **options)

    apply.__dict__["at_once"] = apply_async  # for what is known not to expire
    return apply


class Step(bootsteps.StartStopStep):
    """Has such a worker's pool look."""

    # Its wrapper is the outer one: it knows the request by the callback.
    requires = (
        "celery.worker.consumer.connection:Connection",
        "celery_kit.pools.time_limits:Step",
        "celery_kit.pools.terminate:Step",
    )

    def include_if(self, parent: Any) -> bool:
        return not parent.pool.uses_semaphore

    def create(self, parent: Any) -> None:
        parent.pool.apply_async = watching(parent.pool.apply_async)
