"""The lines about a task's arrival and its success, as JSON without a log record: a quarter of the cost.

The fast engine writes them where nobody could see the difference: the kit's handler of stderr with its JSON is the only handler
of the line's logger, nothing filters its records, and `logging` is as Python has it. Otherwise the line is logged as any other.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import FunctionType

from celery.app import trace as celerys
from celery.app.task import Context
from pythonjsonlogger.json import JsonEncoder

from celery_kit.base.correlation import HEADER, SENT
from celery_kit.base.messages import DELAY
from celery_kit.base.types import Headers
from celery_kit.engine import fast_path, trace
from celery_kit.observe import log_writer, logs

#: By the name of a logger, the filters that the kit itself has added to it.
OWN = {"celery.worker.strategy": [logs.not_celerys_arrival], "celery.app.trace": []}
_quoted: Callable[[str], str] = vars(json.encoder)["encode_basestring"]


def _methods() -> tuple[object, ...]:
    """What packages replace to see or change records."""
    kind = logging.Logger
    return kind.info, kind._log, kind.makeRecord, kind.handle, kind.callHandlers, logging.getLogRecordFactory()


_PYTHONS = _methods()


def _text(value: object) -> str:
    return _quoted(value) if type(value) is str else json.dumps(value, cls=JsonEncoder, ensure_ascii=False)


@lru_cache(1_000)
def _queue(routing_key: str) -> str:
    return _text(DELAY.sub("", routing_key))


class Lines:
    """The lines of one logger. `start`: the fields of each line, before its message."""

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.start = f'"level": "INFO", "logger": {_text(logger.name)}, "message": '
        self.second = 0, ""  # the last second that a line was written in, and its text
        #: The loggers that a record passes, with their handlers and filters.
        self.chain: list[tuple[logging.Logger, list[logging.Handler], list[object]]] = []
        one: logging.Logger | None = logger
        while one:
            self.chain.append((one, list(one.handlers), list(one.filters)))
            one = one.parent if one.propagate else None
        self.handler = self._only_handler()

    def _only_handler(self) -> log_writer.Handler | None:
        """The kit's handler, if a record reaches it and nothing else. A logger's filters see only what is logged to it."""
        # kombu gives each logger a handler that does nothing.
        handlers = [one for _, handlers, _ in self.chain for one in handlers if type(one) is not logging.NullHandler]
        *methods, factory = _PYTHONS
        usual = all(isinstance(one, FunctionType) and one.__code__.co_filename == logging.__file__ for one in methods)
        if len(handlers) != 1 or not usual or factory is not logging.LogRecord or type(self.logger) is not logging.Logger:
            return None
        (handler,) = handlers
        if self.logger.filters != OWN[self.logger.name] or type(handler) is not log_writer.Handler:
            return None
        return handler

    def writer(self) -> log_writer.Writer | None:
        """Where a line may be written without a record; None: nowhere."""
        handler = self.handler
        if (
            handler is None
            or type(handler.formatter) is not logs.Json
            or handler.filters
            or handler.level > logging.INFO
            or handler.is_direct()
            or _methods() != _PYTHONS
            or not self.logger.isEnabledFor(logging.INFO)
        ):
            return None
        for logger, handlers, filters in self.chain:
            if logger.handlers != handlers or logger.filters != filters:
                return None
        return handler.writer

    def time(self, now: float) -> str:
        """The field `time`."""
        second, at = self.second
        if second != int(now):
            second, at = int(now), time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
            self.second = second, at
        return f"{at}.{int((now - second) * 1_000):03d}Z"

    def line(self, now: float, message: str, fields: str) -> str:
        """A line of this process."""
        return f'{{"time": "{self.time(now)}", {self.start}{_quoted(message)}, "process": {os.getpid()}, {_process}{fields}}}\n'


_process = ""
_arrivals: Lines
_successes: Lines


def _fields(request: Headers, delivery: Headers) -> str:
    """As `logs.describe` has them."""
    correlation = request.get(HEADER) or request.get("root_id")
    return (
        f'"task_id": {_text(request.get("id"))}, "task": {_text(request.get("task"))}, '
        f'"queue": {_queue(delivery.get("routing_key") or "")}, "attempt": {(request.get("retries") or 0) + 1}, '
        f'"{HEADER}": {_text(correlation)}'
    )


def _arrival(request: fast_path.Request) -> bool:
    if (writer := _arrivals.writer()) is None:
        return False
    now = time.time()
    about = {
        "id": request.id, "name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr, "eta": None,
    }  # fmt: skip
    headers = request._request_dict
    fields = _fields(headers, request._delivery_info)
    if sent := headers.get(SENT):
        fields += f', "waited": {round(max(0.0, now - sent), 3)}'
    writer.put(_arrivals.line(now, celerys.LOG_RECEIVED % about, fields))
    setattr(request, logs.WRITTEN, True)
    return True


def _success(request: Context, about: Mapping[str, object]) -> bool:
    if (writer := _successes.writer()) is None:
        return False
    own = vars(request)
    fields = _fields(own, own.get("delivery_info") or {})
    if started := own.get(logs.STARTED):
        fields += f', "seconds": {round(time.monotonic() - started, 4)}'
    writer.put(_successes.line(time.time(), celerys.LOG_SUCCESS % about, fields))
    return True


def start() -> None:
    """Write the lines of this worker's tasks, and of its children's."""
    global _process, _arrivals, _successes
    _process = "".join(f"{_text(name)}: {_text(value)}, " for name, value in logs.of_process().items())
    _arrivals, _successes = (Lines(logging.getLogger(name)) for name in OWN)
    fast_path.write_arrival, trace.write_success = _arrival, _success
