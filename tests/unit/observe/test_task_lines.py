"""The lines of a task that are written without a log record: the same as with one, and only where nobody could see a record."""

import json
import logging
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.app import trace
from celery.app.task import Context

from celery_kit.engine import fast_path
from celery_kit.engine import trace as quick
from celery_kit.observe import log_writer, logs, task_lines

HEADERS = {
    "id": "id-1", "task": "app.tasks.ünlike", "root_id": "root-1", "retries": 2,
    "argsrepr": "('\u2028\"',)", "kwargsrepr": "{}", "sent": 12.5,
}  # fmt: skip
DELIVERY = {"routing_key": "0." * 28 + "invoices", "redelivered": False}
FOLLOWED = {**HEADERS, "correlation": "order-7"}
ABOUT = {"id": "id-1", "name": "app.tasks.ünlike", "return_value": "'\n\ud800'", "runtime": 0.25, "args": "()", "kwargs": "{}"}
BASE = logging.getLogger("celery")
ARRIVALS, SUCCESSES = (logging.getLogger(name) for name in task_lines.OWN)


class Log:
    """A worker's log as the kit sets it up, from `start` on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.reader, writer = os.pipe()
        self.stream = os.fdopen(writer, "w")
        self.handler = log_writer.handler(self.stream)
        self.handler.setFormatter(logs.Json())

    def start(self) -> None:
        """Set up logging, and have the lines written. Called in the test, because pytest adds its handlers before that."""
        self.monkeypatch.setattr(BASE, "handlers", [self.handler])
        task_lines.start()

    def read(self) -> str:
        """What has been written since the last call."""
        self.handler.flush()
        return os.read(self.reader, 100_000).decode()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    monkeypatch.setattr(fast_path, "write_arrival", None)
    monkeypatch.setattr(quick, "write_success", None)
    monkeypatch.setattr(logs, "_process", {"worker": "w@here", "pool": "solo"})
    monkeypatch.setattr(BASE, "level", logging.INFO)
    monkeypatch.setattr(BASE, "propagate", False)
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    monkeypatch.setattr("time.time", lambda: 20.125)
    for logger in (ARRIVALS, SUCCESSES):
        monkeypatch.setattr(logger, "filters", list(task_lines.OWN[logger.name]))
        monkeypatch.setattr(logger, "_cache", {})
    one = Log(monkeypatch)
    yield one
    one.stream.close()
    os.close(one.reader)


def arrived(headers: dict[str, Any]) -> Any:
    about = {"request_dict": headers, "_request_dict": headers, "delivery_info": DELIVERY, "_delivery_info": DELIVERY}
    shown = {"argsrepr": headers["argsrepr"], "kwargsrepr": headers["kwargsrepr"]}
    return SimpleNamespace(id=headers["id"], name=headers["task"], **shown, **about)


def succeeded(headers: dict[str, Any]) -> Context:
    return Context(headers, delivery_info=DELIVERY, called_directly=False, **{logs.STARTED: 99.75})


def fields(line: str) -> list[tuple[str, Any]]:
    """The fields of one line in their order, but for its time."""
    (found,) = line.splitlines()
    assert line.endswith("}\n")
    others: list[tuple[str, Any]]
    (name, time), *others = json.loads(found).items()
    assert name == "time" and len(time) == len("2026-11-30T02:30:00.123Z") and time.endswith("Z")
    return others


@pytest.mark.parametrize("headers", [HEADERS, FOLLOWED, {**HEADERS, "root_id": None, "sent": None}])
def test_a_line_about_an_arrival_is_that_of_a_record(log: Log, headers: dict[str, Any]) -> None:
    log.start()
    request = arrived(headers)
    logs._received(request=request)
    with_record = log.read()
    assert fast_path.write_arrival and fast_path.write_arrival(request)
    assert fields(log.read()) == fields(with_record)
    logs._received(request=request)  # by Celery's signal, after that
    BASE.error("end")
    assert fields(log.read())[2] == ("message", "end")


@pytest.mark.parametrize("headers", [HEADERS, FOLLOWED])
def test_a_line_about_a_success_is_that_of_a_record(log: Log, headers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    log.start()
    request = succeeded(headers)
    monkeypatch.setattr(logs, "get_current_worker_task", lambda: SimpleNamespace(request=request))
    trace.info(trace.LOG_SUCCESS, ABOUT)
    with_record = log.read()
    assert quick.write_success and quick.write_success(request, ABOUT)
    assert fields(log.read()) == fields(with_record)
    assert ("seconds", 0.25) in fields(with_record)


def test_a_message_that_a_user_has_changed_is_written(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.start()
    monkeypatch.setattr(trace, "LOG_SUCCESS", "%(name)s with %(args)s")
    assert quick.write_success and quick.write_success(succeeded(HEADERS), ABOUT)
    assert ("message", "app.tasks.ünlike with ()") in fields(log.read())


def _add_handler(_: pytest.MonkeyPatch) -> None:
    BASE.handlers.append(logging.StreamHandler())


def _add_filter(_: pytest.MonkeyPatch) -> None:
    for logger in (ARRIVALS, SUCCESSES):
        logger.filters.append(lambda _: True)


def _filter_handler(_: pytest.MonkeyPatch) -> None:
    BASE.handlers[0].addFilter(lambda _: True)


def _other_formatter(_: pytest.MonkeyPatch) -> None:
    BASE.handlers[0].setFormatter(logging.Formatter())


def _raise_level(monkeypatch: pytest.MonkeyPatch) -> None:
    for logger in (ARRIVALS, SUCCESSES):
        monkeypatch.setattr(logger, "disabled", True)


def _watch_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Sentry does."""
    call_handlers = logging.Logger.callHandlers
    monkeypatch.setattr(logging.Logger, "callHandlers", lambda self, record: call_handlers(self, record))


def _make_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenTelemetry does."""
    monkeypatch.setattr(logging, "_logRecordFactory", lambda *args, **more: logging.LogRecord(*args, **more))


@pytest.mark.parametrize(
    "change",
    [_add_handler, _add_filter, _filter_handler, _other_formatter, _raise_level, _watch_records, _make_records],
    ids=lambda change: change.__name__.strip("_"),
)
def test_whoever_may_see_a_record_gets_one(
    log: Log, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """Also if that changes while the worker runs."""
    log.start()
    arrive, succeed = fast_path.write_arrival, quick.write_success
    assert arrive and succeed and arrive(arrived(HEADERS)) and succeed(succeeded(HEADERS), ABOUT)
    change(monkeypatch)
    assert not arrive(arrived(HEADERS)) and not succeed(succeeded(HEADERS), ABOUT)
    task_lines.start()  # a worker that begins like this
    arrive, succeed = fast_path.write_arrival, quick.write_success
    assert arrive and succeed and not arrive(arrived(HEADERS)) and not succeed(succeeded(HEADERS), ABOUT)
