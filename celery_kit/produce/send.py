"""Send tasks: one, or many at once."""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

from celery import Celery
from celery.exceptions import OperationalError
from kombu.utils.uuid import uuid

from celery_kit.base import target
from celery_kit.base.types import AnyResult, AnyTask, Options
from celery_kit.produce.alike import Call
from celery_kit.produce.bulk import NotAllSentError, Sender, calls
from celery_kit.produce.spool import SendOptions


def tasks() -> Mapping[str, AnyTask]:
    """Every task of the current app by its name, after the modules that its settings name are loaded."""
    app = target.current()
    _load(app)
    return app.tasks


@cache
def _load(app: Celery) -> None:
    app.loader.import_default_modules()


def send(task: str, args: Iterable[object] = (), kwargs: Options | None = None, **options: object) -> AnyResult:
    """Send one task by its name. `options` are those of Celery's apply_async (countdown and expires in seconds, eta, …).

    Raises TypeError if the arguments do not fit the task, NotRegistered if the app has no such task, and OperationalError if
    the broker is unavailable.
    """
    apply_async: Callable[..., AnyResult] = tasks()[task].apply_async
    return apply_async(tuple(args), kwargs or {}, **options)


def send_many(task: str, arguments: Iterable[Iterable[object] | Call], **options: object) -> list[str]:
    """Send a task many times at once. An item is a tuple of arguments, or a :class:`Call` with options of its own.

    Returns the ids, in the same order, once the broker has confirmed all messages. `options` are those of Celery's apply_async,
    for all of them. Raises NotAllSentError, which says which messages were confirmed. With SPOOL the others are written to the
    spool, and nothing is raised. Raises TypeError and NotRegistered, as :func:`send`, before anything is sent.
    """
    app, todo = target.current(), list(calls(arguments))
    if app.conf.task_always_eager:
        return [send(task, call.args, dict(call.kwargs), **{**options, **call.options}).id for call in todo]
    spooled = app.spooled
    with app.producer_or_acquire() as producer:
        try:
            if spooled and spooled.spool.sending:  # these go behind them
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
            own: SendOptions = {**options, **call.options, "task_id": task_id}
            spooled.accept(task, call.args, dict(call.kwargs), own.pop("countdown", None), own.pop("eta", None), own)
    return ids
