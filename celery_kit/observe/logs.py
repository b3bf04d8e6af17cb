"""Logs: one JSON object a line (LOG_FORMAT=json, as in the images) or lines for people (text), with the task in each.

A line that a task writes, and Celery's own about a task, say `task_id`, `task`, `queue`, `worker`, `pool`, `attempt` (1 is the
first), `correlation` (`celery_kit/base/correlation.py`) and, once the task has begun, `seconds` since then; a line about its
arrival says `waited`, the seconds since it was sent. In prefork's children, threads and greenlets too: the task is Celery's
current one of that thread or greenlet. Celery keeps its handlers, levels and options (`--logfile`, `--loglevel`); only the form
is ours. Imported by workers and beat alone, through the app's `log_cls`. Source: celery/app/log.py; `python-json-logger`.
"""

import logging
import time
from pathlib import Path
from typing import Any

from celery import current_app
from celery._state import get_current_worker_task
from celery.app import log, trace
from celery.signals import celeryd_after_setup, setup_logging, task_prerun, task_received
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from celery_kit.base.correlation import HEADER, SENT
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.fixes.delayed_messages import DELAY
from celery_kit.pools.table import named

TASK = "kit_task"  # on a record
STARTED = "log_started"  # on a task's request, in seconds of the monotonic clock

#: What every line of this process says: the worker's name and pool, once it has them.
_process: dict[str, Any] = {}


def describe(request: Any) -> dict[str, Any]:
    """The fields of a task: `request` is Celery's Context, of a task that runs, or a mapping of a message's headers."""
    delivery = request.get("delivery_info") or {}
    fields = {
        "task_id": request.get("id"),
        "task": request.get("task"),
        "queue": DELAY.sub("", delivery.get("routing_key") or ""),
        "attempt": (request.get("retries") or 0) + 1,
        HEADER: request.get(HEADER) or request.get("root_id"),
    }
    if started := request.get(STARTED):
        fields["seconds"] = round(time.monotonic() - started, 4)
    return fields


def task_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of the task that a line is about; empty where it is about none."""
    if TASK in record.__dict__:
        return record.__dict__[TASK]  # type: ignore[no-any-return]
    if task := get_current_worker_task():  # not one that a task calls as a function
        return describe(task.request)
    if record.name == "celery.worker.request" and isinstance(record.args, tuple) and len(record.args) > 1:
        name, task_id = record.args[-2:]  # the parent of prefork, about a child's task that it has just given up
        return {"task_id": task_id, "task": name} if name in current_app.tasks else {}
    about = record.__dict__.get("data")
    return {"task_id": about["id"], "task": about["name"]} if isinstance(about, dict) and "id" in about else {}


class Json(JsonFormatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, `process`; the worker's fields, the task's, what `extra` gave."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__(json_ensure_ascii=False, reserved_attrs=[*RESERVED_ATTRS, "data", TASK])

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        log_data |= {"time": f"{at}.{record.msecs:03.0f}Z", "level": record.levelname, "logger": record.name}
        log_data |= {"message": record.message, "process": record.process, **_process, **task_of(record)}
        super().add_fields(log_data, record, message_dict)


class Text(log.TaskFormatter):
    """Celery's own coloured line, with the task's fields behind it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in task_of(record).items() if name not in ("task_id", "task")}
        return super().formatMessage(record) + (f"  {' '.join(f'{k}={v}' for k, v in fields.items())}" if fields else "")


class Logging(log.Logging):
    """Celery's own, with our form of a line."""

    def setup_handlers(self, logger: Any, logfile: Any, format: Any, colorize: Any, *args: Any, **options: Any) -> Any:
        options["formatter"] = Json if self.app.conf.log_format == "json" else Text
        if isinstance(logfile, str) and (why := why_not_writable(Path(logfile))):
            refuse(f"--logfile {logfile} cannot be written: {why}")
        return super().setup_handlers(logger, logfile, format, colorize, *args, **options)

    def setup_logging_subsystem(self, *args: Any, **options: Any) -> Any:
        if setup_logging.receivers:  # the user's own logging, with Celery's lines
            return super().setup_logging_subsystem(*args, **options)
        celeryd_after_setup.connect(_worker, weak=False)
        task_prerun.connect(_started, weak=False)
        return super().setup_logging_subsystem(*args, **options)


def _worker(sender: str, instance: Any, **_: Any) -> None:
    _process.update(worker=sender, pool=named(instance.pool_cls))
    # Celery's line about a task's arrival knows neither its queue nor its attempt: ours says the same words, and those.
    logging.getLogger("celery.worker.strategy").addFilter(_not_celerys_arrival)
    if logging.getLogger("celery.worker.strategy").isEnabledFor(logging.INFO):
        task_received.connect(_received, weak=False)


def _not_celerys_arrival(record: logging.LogRecord) -> bool:
    return record.msg is not trace.LOG_RECEIVED or TASK in record.__dict__


def _received(request: Any, **_: Any) -> None:
    logger = logging.getLogger("celery.worker.strategy")
    if logger.isEnabledFor(logging.INFO):
        headers = getattr(request, "request_dict", None) or {}
        fields = describe(headers | {"delivery_info": getattr(request, "delivery_info", None)})
        if sent := headers.get(SENT):
            fields["waited"] = round(max(0.0, time.time() - sent), 3)
        # A package may send the signal with a request of its own.
        parts = {"id": "id", "name": "name", "args": "argsrepr", "kwargs": "kwargsrepr"}
        context = {name: getattr(request, part, None) for name, part in parts.items()}
        logger.info(trace.LOG_RECEIVED, context, extra={"data": context, TASK: fields})


def _started(task: Any, **_: Any) -> None:
    setattr(task.request, STARTED, time.monotonic())
