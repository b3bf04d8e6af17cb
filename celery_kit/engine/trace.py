"""Celery's trace of a task, in less time for a task that succeeds.

For each task Celery makes a set of forty names to find the user's own headers, looks for its backend six times, and describes
the return value letter by letter. Errors, callbacks and chains are left to Celery's own functions, which are taken from the
closure of the trace that Celery has built. Source: celery/app/trace.py 5.7.0, build_tracer.
"""

import logging
import os
import weakref
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from inspect import getclosurevars
from time import monotonic
from typing import TypeAlias

from billiard.einfo import ExceptionInfo
from celery import Celery, _state, signals, states
from celery.app import trace
from celery.app.task import Context
from celery.app.trace import TraceInfo, trace_ok_t, traceback_clear
from celery.backends.base import Backend
from celery.exceptions import Ignore, Reject, Retry
from celery.loaders.base import BaseLoader
from celery.utils.dispatch import Signal
from celery.utils.saferepr import saferepr
from kombu.exceptions import EncodeError, OperationalError
from kombu.serialization import loads
from kombu.utils.encoding import safe_repr

from celery_kit.base.types import AnyTask, Headers
from celery_kit.engine.commit import commit
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import JSON, kombus_reader, parse

#: Names of Celery's closure that the quick trace calls.
PARTS = ("on_error", "_dispatch_callbacks_and_chain", "fun", "_does_info")
#: Names that are set in it where a task, or a setting, needs Celery's own trace.
MORE = ("task_before_start", "task_on_success", "task_after_return", "deduplicate_successful_tasks", "inherit_parent_priority")
#: Headers that are not a user's own. Source: Context._get_custom_headers.
KNOWN = frozenset((*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"))
PLAIN = (int, float, bool, type(None))

#: Set by celery_kit/observe/task_lines.py: writes the line about a task's success in place of Celery's, or returns False.
#: Called with the task's request, and with what the line tells.
write_success: Callable[[Context, Mapping[str, object]], bool] | None = None

_signals_logger = logging.getLogger(Signal.__module__)

#: A task's trace: it is called with the task's id, its arguments, its keyword arguments, and its request.
Trace: TypeAlias = Callable[..., trace_ok_t]


def read(body: bytes | str, content_type: str, content_encoding: str, accept: Collection[str] | None = None) -> object:
    """kombu's `loads`, quicker for JSON. Raises what that raises."""
    if content_type == JSON and body and (accept is None or JSON in accept) and kombus_reader():
        with suppress(AttributeError, ValueError, RecursionError):  # kombu reports what is wrong
            return parse(body if isinstance(body, str) else body.decode())
    return loads(body, content_type, content_encoding, accept=accept)


def shown(value: object, most: int) -> str:
    """A return value as Celery describes it, in at most `most` characters."""
    return repr(value) if type(value) in PLAIN and len(repr(value)) <= most else saferepr(value, most)


def context(request: Headers, args: object, kwargs: object) -> Context:
    """Celery's Context of a request, made without a search for the names of its known headers."""
    made = Context.__new__(Context)
    about = vars(made)
    about.update(request, args=args, called_directly=False, kwargs=kwargs)
    if limits := about.get("timelimit"):
        about["time_limit"], about["soft_time_limit"] = limits[0], limits[1]
    if about.get("headers") is None:
        about["headers"] = None if request.keys() <= KNOWN else {name: request[name] for name in request.keys() - KNOWN}
    return made


def sending(signal: Signal, sender: object) -> Callable[..., None]:
    """A function like signal.send(sender=sender, …) that looks up the receivers once, not for each task.

    Source: celery/utils/dispatch/signal.py.
    """
    known: list[tuple[object, object]] = []
    live: list[Callable[..., object]] = []

    def send(**named: object) -> None:
        nonlocal known, live
        if known != signal.receivers:
            known, live = list(signal.receivers), vars(Signal)["_live_receivers"](signal, sender)
            if any(isinstance(receiver, weakref.ReferenceType) for _, receiver in known):
                known = []  # one of them may be deleted at any time
        for receiver in live:
            try:
                receiver(signal=signal, sender=sender, **named)
            except Exception as error:
                _signals_logger.exception("Signal handler %r raised: %r", receiver, error)

    return send


def quick(task: AnyTask, app: Celery, hostname: str) -> Trace:
    """A trace of `task` for a worker: Celery's own if the task or a setting needs more than the quick trace does."""
    celerys: Trace = trace.build_tracer(task.name, task, app.loader, hostname, app=app)
    parts, loader = getclosurevars(celerys).nonlocals, type(app.loader)
    hooked = (
        loader.on_task_init is not BaseLoader.on_task_init or loader.on_process_cleanup is not BaseLoader.on_process_cleanup
    )
    if not on("trace") or hooked or any(map(parts.get, MORE)) or any(name not in parts for name in PARTS):
        return celerys
    on_error, dispatch, run, logs_end = (parts[name] for name in PARTS)
    pid, most = os.getpid(), task.resultrepr_maxsize
    before, after, succeeded = signals.task_prerun, signals.task_postrun, signals.task_success
    send_before, send_after, send_success = (sending(signal, task) for signal in (before, after, succeeded))
    tasks = vars(_state)["_task_stack"]
    push_task, pop_task = tasks.push, tasks.pop
    push_request, pop_request = task.request_stack.push, task.request_stack.pop

    def traced(uuid: str, args: Collection[object], kwargs: Mapping[str, object], request: Headers) -> trace_ok_t:
        if type(kwargs) is not dict:
            return celerys(uuid, args, kwargs, request)
        result: object
        info: TraceInfo | None
        value: object
        state: str | None
        result = info = runtime = text = value = state = None
        began = monotonic()
        this = context(request, args, kwargs)
        try:
            ignored = this.__dict__.get("ignore_result")
            ignored = task.ignore_result if ignored is None else ignored
            backend = task.backend
            push_task(task)
            push_request(this)
            try:
                if before.receivers:
                    send_before(task_id=uuid, task=task, args=args, kwargs=kwargs)
                if task.track_started and not ignored:
                    backend.store_result(uuid, {"pid": pid, "hostname": hostname}, states.STARTED, request=this)
                try:
                    result = value = run(*args, **kwargs)
                    state = states.SUCCESS
                except (Reject, Ignore) as error:
                    rejected = isinstance(error, Reject)
                    info = TraceInfo(states.REJECTED if rejected else states.IGNORED, error)
                    result, state, value = ExceptionInfo(internal=True), info.state, info.retval
                    (info.handle_reject if rejected else info.handle_ignore)(task, this)
                    traceback_clear(error)
                except Retry as error:
                    info, result, state, value = on_error(this, error, states.RETRY, call_errbacks=False)
                    traceback_clear(error)
                except Exception as error:
                    info, result, state, value = on_error(this, error)
                    traceback_clear(error)
                else:
                    sent = False
                    try:
                        if this.callbacks or this.chain:
                            root = this.root_id or uuid
                            dispatch(value, this.callbacks, this.chain, parent_id=uuid, root_id=root, priority=None)
                        sent = commit.ending = True
                        backend.mark_as_done(uuid, value, this, not ignored)
                        commit.ending = False
                    except (EncodeError, OperationalError) as error:
                        if sent and isinstance(error, OperationalError):
                            raise
                        info, result, state, value = on_error(this, error)
                        traceback_clear(error)
                    else:
                        text = shown(result, most)
                        runtime = monotonic() - began
                        if succeeded.receivers:
                            send_success(result=value, runtime=runtime)
                        if logs_end:
                            _log_end(task, uuid, this, text, runtime)
            finally:
                try:
                    if after.receivers:
                        send_after(task_id=uuid, task=task, args=args, kwargs=kwargs, retval=value, state=state)
                finally:
                    pop_task()
                    pop_request()
                    _clean_up(backend)
        except (MemoryError, Reject):
            raise
        except Exception as error:
            vars(trace)["_signal_internal_error"](task, uuid, args, kwargs, request, error)
            result = trace.report_internal_error(task, error)
            info, _, _, _ = on_error(this, error)
        return trace_ok_t(result, info, runtime, text)

    return traced


def _log_end(task: AnyTask, uuid: str, this: Context, text: str, runtime: float) -> None:
    about = {
        "id": uuid,
        "name": trace.get_task_name(this, task.name),
        "return_value": text,
        "runtime": runtime,
        "args": this.get("argsrepr") or safe_repr(this.args),
        "kwargs": this.get("kwargsrepr") or safe_repr(this.kwargs),
    }
    if not (write_success and write_success(this, about)):
        trace.info(trace.LOG_SUCCESS, about)


def _clean_up(backend: Backend) -> None:
    try:
        backend.process_cleanup()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:
        trace.logger.error("Process cleanup failed: %r", error, exc_info=True)
