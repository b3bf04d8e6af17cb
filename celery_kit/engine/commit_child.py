"""The commit (`celery_kit/engine/commit.py`) on a pool of processes: a child hands its result to the parent, which writes
groups of them.

The child's part is :func:`run`, in place of Celery's fast_trace_task: a success goes along with the task's return value, so a
task costs the child no round trip. A state that others must see at once - started and not done in a moment, failed, retried,
the task's own word - it stores itself; so it does with every other task's, with a large result, and with one that has no others
to go with (:func:`run_alone`), which is there sooner then. Where somebody in the child looks - a signal's receiver, say - the
success is stored before. The parent's part is :func:`carry`, of the pool (`celery_kit/pools/in_children.py`).
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from celery import current_app
from celery.app.trace import fast_trace_task

from celery_kit.engine.commit import REQUEST, Write, commit
from celery_kit.engine.pipes import in_one_write
from celery_kit.engine.trace import quick, read

trace: Any = import_module("celery.app.trace")

#: The tasks of this process that have their short trace by now.
_prepared: set[str] = set()


class Carried(str):
    """What the parent shows of a task's return value, and its result as it is to be stored."""

    write: Write

    def __reduce__(self) -> Any:
        return _carried, (str(self), tuple(self.write))


def _carried(shown: str, write: tuple[Any, ...]) -> Carried:
    carried = Carried(shown)
    carried.write = Write(*write)
    return carried


def run(task: str, uuid: str, *args: Any, **options: Any) -> tuple[int, Any, float]:
    """fast_trace_task, in a child process."""
    if not commit.running:
        commit.start(current_app.backend.store_group, lambda: 1)  # type: ignore[attr-defined]  # the stubs lack it
        commit.child = True
    if task not in _prepared and trace._localized:
        _prepared.add(task)
        tasks, _, hostname = trace._localized
        tasks[task].__trace__ = quick(tasks[task], current_app, hostname)
    commit.task_id = uuid
    try:
        failed, shown, runtime = fast_trace_task(task, uuid, *args, **{"loads": read, **options})
        carried = None if failed else commit.hand_over(uuid)
    finally:
        commit.end()  # a STARTED that no end has followed here: the parent's word of the end comes after it
    return failed, (_carried(str(shown), tuple(carried)) if carried else shown), runtime


def run_alone(*args: Any, **options: Any) -> tuple[int, Any, float]:
    """`run`, of the only task that the worker has."""
    commit.alone = True
    try:
        return run(*args, **options)
    finally:
        commit.alone = False


def carry(
    apply_async: Callable[..., Any], target: Any, args: Any = None, kwargs: Any = None, *, callback: Any = None, **options: Any
) -> Any:
    """Hand a task to a pool's `apply_async`; if it is acknowledged late, its result comes back to this process."""
    request = getattr(callback, "__self__", None)
    if target is not fast_trace_task or request is None or not (request.task.acks_late and request.task.Request == REQUEST):
        return apply_async(target, args, kwargs, callback=callback, **options)

    def done(outcome: Any) -> Any:
        if isinstance(outcome[1], Carried):
            commit.result(outcome[1].write.of(request.id))
        return callback(outcome)

    job = apply_async(run_alone if commit.lone else run, args, kwargs, callback=done, **options)
    in_one_write(job)
    return job
