"""Send tasks: one, or many at once."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from celery.exceptions import OperationalError
from celery.result import AsyncResult
from kombu.utils.uuid import uuid

from celery_kit.base import target
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import NotAllSentError, Sender, calls


def tasks() -> Mapping[str, Any]:
    """Every task by its name, those of the modules that the app's settings name loaded."""
    app = target.current()
    _load(app)
    return app.tasks


@cache
def _load(app: Any) -> None:
    app.loader.import_default_modules()


def send(task: str, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None, **options: Any) -> "AsyncResult[Any]":
    """Send one task by its name. `options` are those of Celery's apply_async (countdown and expires in seconds, eta, …).

    Raises TypeError where the arguments do not fit the task, NotRegistered where no such task is in `app/tasks/`.
    """
    result: AsyncResult[Any] = tasks()[task].apply_async(tuple(args), kwargs or {}, **options)
    return result


def send_many(task: str, arguments: Iterable[Iterable[Any] | Call], **options: Any) -> list[str]:
    """Send a task many times at once: an item is a tuple of arguments, or a :class:`Call` with options of its own.

    Gives the ids, in the same order, once the broker has confirmed all of them. `options` are those of Celery's apply_async,
    for all. Raises NotAllSentError, which says which were confirmed; with SPOOL the others are written there instead, and
    nothing is raised. TypeError and NotRegistered as :func:`send`, before anything is sent.
    """
    app, todo = target.current(), list(calls(arguments))
    if app.conf.task_always_eager:
        return [send(task, call.args, dict(call.kwargs), **{**options, **call.options}).id for call in todo]
    spooled = app.spooled
    with app.producer_or_acquire() as producer:
        try:
            if spooled and spooled.spool.sending:  # behind what waits there
                raise OperationalError("tasks wait in the spool")
            return Sender(app, tasks()[task], options, producer).send(todo)
        except OperationalError as error:
            if not spooled:
                raise
            parts = (error.confirmed, error.uncertain, error.unsent) if isinstance(error, NotAllSentError) else ()
            ids = [task_id for part in parts for task_id in part] or [uuid() for _ in todo]
            rest = set(ids) - set(parts[0] if parts else ())
    for call, task_id in zip(todo, ids, strict=True):
        if task_id in rest:
            own = {**options, **call.options, "task_id": task_id}
            spooled.accept(task, call.args, dict(call.kwargs), own.pop("countdown", None), own.pop("eta", None), own)
    return ids
