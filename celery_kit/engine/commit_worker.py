"""The worker's side of the commit (`celery_kit/engine/commit.py`): its tasks' Request class, and the step that starts it."""

from typing import Any

from celery import bootsteps
from celery.worker import state
from celery.worker.request import Request as CelerysRequest

from celery_kit.engine.commit import REQUEST, commit
from celery_kit.engine.commit_child import carry

CELERYS_REQUEST = "celery.worker.request:Request"


class Request(CelerysRequest):
    """A request whose late acknowledgement waits for its result. Source: Celery's guide, "Custom requests"."""

    def acknowledge(self) -> None:
        if commit.running and self.task.acks_late:
            commit.ack(super().acknowledge)
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        if commit.running:
            commit.try_flush()  # a state that comes once the task has begun elsewhere would be wrong
        super().reject(requeue)


class Step(bootsteps.StartStopStep):
    """Makes a worker's groups while it consumes, where the results backend has `store_group`."""

    label = "Commit"
    # Between the two, so that it writes what there is before the channel closes.
    requires = ("celery.worker.consumer.connection:Connection",)

    def include_if(self, parent: Any) -> bool:
        return hasattr(parent.app.backend, "store_group")

    def create(self, parent: Any) -> None:
        for task in parent.app.tasks.values():
            if task.Request == CELERYS_REQUEST:
                task.Request = REQUEST
        if parent.pool.uses_semaphore:  # its tasks run in other processes
            parent.pool.carry = carry

    def start(self, parent: Any) -> None:
        reserved = state.reserved_requests

        def channel() -> Any:
            return getattr(parent.task_consumer, "channel", None)  # there is none as yet, or any more

        def busy() -> int:
            return len(reserved) + len(getattr(channel(), "prefetched", ()))

        def more() -> None:
            if refill := getattr(channel(), "refill", None):
                refill()

        commit.start(parent.app.backend.store_group, busy, lazy=parent.pool.uses_semaphore, more=more)
        if parent.hub:
            parent.hub.on_tick.add(commit.tick)

    def stop(self, _: Any) -> None:
        commit.stop()

    shutdown = stop
