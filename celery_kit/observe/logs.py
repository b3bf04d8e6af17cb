"""Logs: JSON objects, one a line (LOG_FORMAT=json, as in the images), or text lines. Both have fields of the current task.

A line that a task logs, and Celery's own line about a task, has `task_id`, `task`, `queue`, `worker`, `pool`, `attempt` (from
1), `correlation` (`celery_kit/base/correlation.py`) and, once the task has begun, the `seconds` since then. The line about a
task's arrival has `waited`, the seconds since it was sent. This holds in prefork's children, threads and greenlets too, because
the task is Celery's current task of that thread or greenlet. Handlers, levels and options (`--logfile`, `--loglevel`) stay
Celery's, but lines on stderr are written in batches (`celery_kit/observe/log_writer.py`). Only workers and beat import this
module, through the app's `log_cls`. Source: celery/app/log.py; `python-json-logger`.
"""

import logging
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from celery import current_app
from celery._state import get_current_worker_task
from celery.app import log, trace
from celery.signals import celeryd_after_setup, setup_logging, task_prerun, task_received
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from celery_kit.base.correlation import HEADER, SENT
from celery_kit.base.messages import DELAY
from celery_kit.base.refusals import refuse, why_not_writable
from celery_kit.base.types import AnyTask, Worker, WorkerRequest
from celery_kit.observe import log_writer
from celery_kit.pools.table import named

TASK = "kit_task"  # attribute of a log record
WRITTEN = "arrival_written"  # attribute of a worker's request whose arrival has its line
STARTED = "log_started"  # attribute of a task's request, in seconds of the monotonic clock

#: By name, the fields of a log line.
Fields = dict[str, object]
#: Fields of every line of this process: the worker's name and pool, once they are known.
_process: Fields = {}


class Readable(Protocol):
    """What both a mapping and Celery's Context can do."""

    def get(self, key: str, /) -> Any: ...


def describe(request: Readable) -> Fields:
    """The fields of a task. `request`: the Context of a running task, or a message's headers."""
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


def task_of(record: logging.LogRecord) -> Fields:
    """The fields of the task that a line is about; empty if it is about none."""
    if TASK in record.__dict__:
        return cast(Fields, record.__dict__[TASK])
    if task := get_current_worker_task():  # the message's task, not one that it calls as a function
        return describe(task.request)
    if record.name == "celery.worker.request" and isinstance(record.args, tuple) and len(record.args) > 1:
        name, task_id = record.args[-2:]  # logged by prefork's parent, about a child's task that it has just given up
        return {"task_id": task_id, "task": name} if name in current_app.tasks else {}
    about = record.__dict__.get("data")
    return {"task_id": about["id"], "task": about["name"]} if isinstance(about, dict) and "id" in about else {}


class Json(JsonFormatter):
    """`time` (ISO 8601, UTC), `level`, `logger`, `message`, `process`; the fields of the worker, the task and `extra`."""

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__(json_ensure_ascii=False, reserved_attrs=[*RESERVED_ATTRS, "data", TASK])

    def add_fields(self, log_data: Fields, record: logging.LogRecord, message_dict: Fields) -> None:
        """Put the fields into `log_data`."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        log_data |= {"time": f"{at}.{record.msecs:03.0f}Z", "level": record.levelname, "logger": record.name}
        log_data |= {"message": record.message, "process": record.process, **_process, **task_of(record)}
        super().add_fields(log_data, record, message_dict)


class Text(log.TaskFormatter):
    """Celery's own coloured line, followed by the task's fields."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, as `name=value` for each field."""
        fields = {name: value for name, value in task_of(record).items() if name not in ("task_id", "task")}
        return super().formatMessage(record) + (f"  {' '.join(f'{k}={v}' for k, v in fields.items())}" if fields else "")


class Logging(log.Logging):
    """Celery's setup of logging, with the formatters above."""

    def setup_handlers(
        self, logger: logging.Logger, logfile: object, format: str, colorize: bool, *args: Any, **options: Any
    ) -> logging.Logger:
        """Set the formatter. Refuses a log file that cannot be written."""
        options["formatter"] = Json if self.app.conf.log_format == "json" else Text
        if isinstance(logfile, str) and (why := why_not_writable(Path(logfile))):
            refuse(f"--logfile {logfile} cannot be written: {why}")
        return super().setup_handlers(logger, logfile, format, colorize, *args, **options)

    def _detect_handler(self, logfile: object = None) -> logging.Handler:
        if logfile is None and sys.__stderr__ is not None:
            return log_writer.handler(sys.__stderr__)
        found: logging.Handler = super()._detect_handler(logfile)  # type: ignore[misc]  # unknown to celery-types
        return found

    def setup_logging_subsystem(self, *args: Any, **options: Any) -> object:
        """Set up logging, and have task and worker signals supply their fields."""
        if setup_logging.receivers:  # the user sets up logging, which keeps Celery's lines
            return super().setup_logging_subsystem(*args, **options)
        celeryd_after_setup.connect(_worker, weak=False)
        task_prerun.connect(_started, weak=False)
        return super().setup_logging_subsystem(*args, **options)


def _worker(sender: str, instance: Worker, **_: object) -> None:
    _process.update(worker=sender, pool=named(instance.pool_cls))
    # Celery's line about a task's arrival lacks its queue and attempt. Ours has the same message, with those fields.
    logging.getLogger("celery.worker.strategy").addFilter(not_celerys_arrival)
    if logging.getLogger("celery.worker.strategy").isEnabledFor(logging.INFO):
        task_received.connect(_received, weak=False)
        import_module("celery_kit.observe.task_lines").start()  # it imports the engine of a worker, which beat does not need


def of_process() -> Fields:
    """The fields of every line of this process."""
    return dict(_process)


def not_celerys_arrival(record: logging.LogRecord) -> bool:
    """A filter: whether a record is not Celery's own about a task's arrival, for which the kit has one with more fields."""
    return record.msg is not trace.LOG_RECEIVED or TASK in record.__dict__


def _received(request: WorkerRequest, **_: object) -> None:
    logger = logging.getLogger("celery.worker.strategy")
    if logger.isEnabledFor(logging.INFO) and not hasattr(request, WRITTEN):
        headers = getattr(request, "request_dict", None) or {}
        fields = describe(headers | {"delivery_info": getattr(request, "delivery_info", None)})
        if sent := headers.get(SENT):
            fields["waited"] = round(max(0.0, time.time() - sent), 3)
        # A third-party package may send the signal with a request class of its own, which lacks some of these.
        parts = {"id": "id", "name": "name", "args": "argsrepr", "kwargs": "kwargsrepr"}
        context = {name: getattr(request, part, None) for name, part in parts.items()}
        logger.info(trace.LOG_RECEIVED, context, extra={"data": context, TASK: fields})


def _started(task: AnyTask, **_: object) -> None:
    setattr(task.request, STARTED, time.monotonic())
