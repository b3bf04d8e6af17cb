"""The worker's side of group commit (`celery_kit/engine/commit.py`): the tasks' Request class, and the step that starts it."""

from celery import bootsteps
from celery.worker import state

from celery_kit.base.types import WorkerConsumer
from celery_kit.engine.commit import REQUEST, commit, store_of
from celery_kit.engine.commit_child import carry
from celery_kit.pools.failed import Request as KeepsFailed

CELERYS_REQUEST = "celery.worker.request:Request"


class Request(KeepsFailed):
    """A request whose late acknowledgement waits for its result. Source: Celery's guide, "Custom requests"."""

    def acknowledge(self) -> None:
        """Acknowledge the message, after the task's result is stored if the task is acknowledged late."""
        if commit.running and self.task.acks_late:
            commit.ack(super().acknowledge)
        else:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        """Reject the message, after the results that wait are stored."""
        if commit.running:
            commit.try_flush()  # a state that is stored after the task has begun elsewhere would be wrong
        super().reject(requeue)


class Step(bootsteps.StartStopStep):
    """Groups a worker's results while it consumes, if the result backend can store a group."""

    label = "Commit"
    # Stopped before the connection is closed, so that the last group can be acknowledged.
    requires = ("celery.worker.consumer.connection:Connection",)

    def include_if(self, parent: WorkerConsumer) -> bool:
        """Whether the result backend can store a group."""
        return store_of(parent.app) is not None

    def create(self, parent: WorkerConsumer) -> None:
        """Give tasks with Celery's Request class the class of this module."""
        for task in parent.app.tasks.values():
            if task.Request == CELERYS_REQUEST:
                task.Request = REQUEST
        if parent.pool.uses_semaphore:  # its tasks run in other processes
            parent.pool.carry = carry

    def start(self, parent: WorkerConsumer) -> None:
        """Start to group results."""
        reserved, store = state.reserved_requests, store_of(parent.app)
        if store is None:
            return

        def channel() -> object:
            return getattr(parent.task_consumer, "channel", None)  # None before the consumer starts and after it has stopped

        def busy() -> int:
            return len(reserved) + len(getattr(channel(), "prefetched", ()))

        def more() -> None:
            if refill := getattr(channel(), "refill", None):
                refill()

        commit.start(store, busy, lazy=parent.pool.uses_semaphore, more=more)
        if parent.hub:
            parent.hub.on_tick.add(commit.tick)

    def stop(self, parent: WorkerConsumer) -> None:
        """Write the last group."""
        commit.stop()

    shutdown = stop
