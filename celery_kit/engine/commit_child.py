"""Group commit (`celery_kit/engine/commit.py`) on a pool of processes: a child process passes its result to the parent, which
writes groups of them.

The child's part is :func:`run`, in place of Celery's fast_trace_task. A success is sent to the parent with the task's return
value, so a task costs the child no round trip. The child stores everything else itself: a state that others must see at once
(a STARTED that lasts, a failure, a retry, a progress report), other tasks' states, a large result, and one that the parent has
no other result to batch with (:func:`run_alone`), which can be read sooner then. If something in the child reads the result,
such as a signal's receiver, the success is stored before that. The parent's part is :func:`carry`, which a pool calls
(`celery_kit/pools/in_children.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from celery import current_app
from celery.app import trace
from celery.app.trace import fast_trace_task

from celery_kit.base.types import Callback, FailedValueRuntime, Headers
from celery_kit.engine.commit import REQUEST, Value, Write, commit, store_of
from celery_kit.engine.pipes import Job, in_one_write
from celery_kit.engine.trace import quick, read

#: What a child runs a task with: its name, its id, its request, and its message's body, content type and content encoding.
Sent: TypeAlias = tuple[str, str, Headers, bytes | str, str, str]

#: The tasks that have their quick trace in this process.
_prepared: set[str] = set()


class Carried(str):
    """A task's return value as the parent's log shows it, with the result to be stored."""

    write: Write

    def __reduce__(self) -> tuple[Callable[..., "Carried"], tuple[str, *tuple[Value | int, ...]]]:
        return _carried, (str(self), *self.write)


def _carried(shown: str, *write: *tuple[str, Value, int, str]) -> Carried:
    carried = Carried(shown)
    carried.write = Write(*write)
    return carried


def run(*sent: *Sent) -> FailedValueRuntime:
    """fast_trace_task, in a child process: the value that it returns may be :class:`Carried`."""
    name, task_id = sent[:2]
    if not commit.running and (store := store_of(current_app)):
        commit.start(store, lambda: 1)
        commit.child = True
    if name not in _prepared and (localized := vars(trace)["_localized"]):
        _prepared.add(name)
        tasks, _, hostname = localized
        tasks[name].__trace__ = quick(tasks[name], current_app, hostname)
    commit.task_id = task_id
    try:
        failed, shown, runtime = fast_trace_task(*sent, read)
        write = None if failed else commit.hand_over(task_id)
    finally:
        commit.end()  # stores a STARTED that no end has followed here, before the parent reports the end
    return failed, (_carried(str(shown), *write) if write else shown), runtime


def run_alone(*sent: *Sent) -> FailedValueRuntime:
    """:func:`run`, of the only task that the worker has."""
    commit.alone = True
    try:
        return run(*sent)
    finally:
        commit.alone = False


def carry(
    apply_async: Callable[..., Job | None],
    target: Callback,
    args: Sequence[object] | None = None,
    kwargs: Mapping[str, object] | None = None,
    *,
    callback: Callable[[FailedValueRuntime], object] | None = None,
    **options: object,
) -> Job | None:
    """Pass a task to a pool's `apply_async`. If the task is acknowledged late, its child sends its result to this process.

    `callback`: a method of the task's request. It is called after the result is in the group.
    """
    request = getattr(callback, "__self__", None)
    if (
        callback is None
        or target is not fast_trace_task
        or request is None
        or not (request.task.acks_late and request.task.Request == REQUEST)
    ):
        return apply_async(target, args, kwargs, callback=callback, **options)

    def done(outcome: FailedValueRuntime) -> object:
        if isinstance(outcome[1], Carried):
            commit.result(outcome[1].write.of(request.id))
        return callback(outcome)

    job = apply_async(run_alone if commit.lone else run, args, kwargs, callback=done, **options)
    in_one_write(job)
    return job
