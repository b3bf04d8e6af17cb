"""The fast path of a message through a worker of ENGINE=fast, from its transport to the pool.

Celery's path handles everything that a message may contain, and each task pays for that: two promises for an acknowledgement, a
body that is decoded three times, dates, rate limits, signals without receivers. Here one function passes a plain message to the
pool. A message is plain if it is JSON, is delivered for the first time, and has neither ETA nor expiry nor stamps; if its task
is acknowledged late and has Celery's Strategy and Request classes. Task events are sent by Celery's own methods of Request.
Every other message takes Celery's path, unchanged.
Source: celery/worker/strategy.py, request.py, consumer/consumer.py (create_task_handler) 5.7.0.
"""

import logging
from collections.abc import Callable
from functools import cached_property
from time import monotonic, time
from typing import Any, TypeAlias
from weakref import ref

from celery import Celery, bootsteps, signals
from celery.app import trace
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.concurrency.base import BasePool
from celery.exceptions import TaskRevokedError
from celery.worker import request as celerys_request
from celery.worker import state
from celery.worker import strategy as celerys

from celery_kit.base.gate import wrong_callback
from celery_kit.base.messages import DELIVERIES
from celery_kit.base.types import AnyTask, Callback, FailedValueRuntime, Headers, Message, WorkerConsumer
from celery_kit.engine.commit import REQUEST, store_of
from celery_kit.engine.commit_worker import Request as GroupRequest
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import JSON, kombus_reader, parse
from celery_kit.engine.trace import Trace, quick, sending

STRATEGY, CELERYS_STRATEGY = "celery_kit.engine.fast_path:strategy", "celery.worker.strategy:default"
#: Headers that only Celery's path handles.
ASKS = ("eta", "expires", "stamped_headers", DELIVERIES)
#: A body's arguments, keyword arguments, and callbacks, chain and chord.
Payload: TypeAlias = tuple[list[object], dict[str, object], dict[str, object]]

#: Set by celery_kit/observe/task_lines.py: writes the line about a task's arrival in place of Celery's, or returns False.
write_arrival: "Callable[[Request], bool] | None" = None

_celerys = vars(celerys_request)
Base: Any = GroupRequest  # the stubs of Celery's class lack most of what is set here


def decoded(message: Message) -> Payload | None:
    """The payload of a message's body; None if only Celery's path can handle it."""
    accept, body = message.accept, message.body
    if message.content_type != JSON or (accept is not None and JSON not in accept) or message.errors:
        return None
    try:
        payload = parse(body if isinstance(body, str) else body.decode())
        args, kwargs, embed = payload
    except (AttributeError, RecursionError, TypeError, ValueError):
        return None  # Celery's path reports what is wrong
    if type(payload) is not list or type(args) is not list or type(kwargs) is not dict or type(embed) is not dict:
        return None
    if any(embed.values()) and wrong_callback(embed):
        return None
    message._decoded_cache = payload
    return args, kwargs, embed


class Request(Base):  # type: ignore[misc]
    """Celery's Request, made without its look-ups. `path`: what all requests of its task have in common."""

    def __init__(self, message: Message, payload: Payload, path: "FastPath") -> None:
        headers = message.headers
        self._path = path
        self._message, self._task, self._app = message, path.task, path.app
        self._hostname, self._eventer, self._connection_errors = path.hostname, path.eventer, path.connection_errors
        self._body, self._content_type, self._content_encoding = message.body, JSON, message.content_encoding
        self._decoded, self._utc, self._eta, self._expires = False, path.utc, None, None
        self._on_ack, self._on_reject = message.ack_log_error, message.reject_log_error
        self._Request__payload = payload
        self._args, self._kwargs, _ = payload
        self.id = headers["id"]
        self._type = name = headers["task"]
        self.name = headers.get("shadow") or name
        self._root_id, self._parent_id = headers.get("root_id"), headers.get("parent_id")
        self._argsrepr, self._kwargsrepr = headers.get("argsrepr", ""), headers.get("kwargsrepr", "")
        if limits := headers.get("timelimit"):
            self.time_limits = limits
        ignored = headers.get("ignore_result")
        self._ignore_result = path.task.ignore_result if ignored is None else ignored
        about, properties = message.delivery_info, message.properties
        self._delivery_info = {
            "exchange": about.get("exchange"),
            "routing_key": about.get("routing_key"),
            "priority": properties.get("priority"),
            "redelivered": about.get("redelivered", False),
        }
        self._request_dict = headers | {
            "properties": properties,
            "reply_to": properties.get("reply_to"),
            "correlation_id": properties.get("correlation_id"),
            "hostname": path.hostname,
            "delivery_info": self._delivery_info,
            "args": self._args,
            "kwargs": self._kwargs,
        }

    def revoked(self) -> bool:
        """As Celery's."""
        if self.id in state.revoked or self._already_revoked or self._expires is not None:
            return bool(super().revoked())
        return False

    def execute_using_pool(self, pool: BasePool, **_: object) -> object:
        """As Celery's, with the pool's `apply_async` looked up once. Raises TaskRevokedError."""
        if self.revoked():
            raise TaskRevokedError(self.id)
        path, (time_limit, soft_time_limit) = self._path, self.time_limits
        result = path.apply_async(
            path.target,
            args=path.arguments(self),
            accept_callback=self.on_accepted,
            timeout_callback=self.on_timeout,
            callback=self.on_success,
            error_callback=self.on_failure,
            soft_timeout=soft_time_limit or path.soft_time_limit,
            timeout=time_limit or path.time_limit,
            correlation_id=self.id,
        )
        self._apply_result = None if result is None else ref(result)
        return result

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """As Celery's. `time_accepted`: seconds of the monotonic clock."""
        if self._path.is_watched():
            super().on_accepted(pid, time_accepted)
            return
        self.worker_pid = pid
        self.time_start = time() - (monotonic() - time_accepted)
        state.requests[self.id] = self
        state.active_requests.add(self)
        state.total_count[self.name] += 1
        state.all_total_count[0] += 1
        if self._terminate_on_ack is not None:
            self.terminate(*self._terminate_on_ack)

    def on_success(self, failed__retval__runtime: FailedValueRuntime, **options: object) -> None:
        """As Celery's."""
        if failed__retval__runtime[0] or self._path.is_watched():
            super().on_success(failed__retval__runtime, **options)
            return
        if self._path.remembers:
            state.successful_requests.add(self.id)
        state.requests.pop(self.id, None)
        state.active_requests.discard(self)
        state.reserved_requests.discard(self)
        self.acknowledge()


class FastPath:
    """The fast path of one task. Called with a message that the gate has let in (`celery_kit/base/gate.py`).

    It returns False, without effect, if Celery's path must be taken.
    """

    def __init__(self, task: AnyTask, app: Celery, consumer: WorkerConsumer) -> None:
        self.task, self.app, self.consumer = task, app, consumer
        self.hostname, self.eventer = consumer.hostname, consumer.event_dispatcher
        self.connection_errors = consumer.connection_errors
        self.utc = app.uses_utc_timezone()
        self.time_limit, self.soft_time_limit = task.time_limit, task.soft_time_limit
        self.apply_async: Callback = consumer.pool.apply_async
        self.in_children = consumer.pool.uses_semaphore
        # An embedded worker has no registry of tasks for fast_trace_task.
        in_child: Callback = fast_trace_task if getattr(app, "use_fast_trace_task", False) else trace_task_ret
        self.target = in_child if self.in_children else self.run
        self.remembers = bool(app.conf.worker_deduplicate_successful_tasks)
        self.says_arrival = celerys.logger.isEnabledFor(logging.INFO)
        self.send_received = sending(signals.task_received, consumer)

    @cached_property
    def trace(self) -> Trace:
        """The task's trace. Made for its first message, because many tasks of an app never run in a given worker."""
        return quick(self.task, self.app, self.hostname)

    def is_watched(self) -> bool:
        """Whether each step has to be reported: task events are sent, or the worker logs at the level DEBUG."""
        eventer = self.eventer
        sends = eventer and eventer.enabled and not (eventer.groups and "task" not in eventer.groups)
        return bool(sends) or _celerys["_does_debug"]

    def __call__(self, message: Message, headers: Headers) -> bool:
        consumer, task_id = self.consumer, headers.get("id")
        if any(map(headers.get, ASKS)) or _celerys["_does_debug"]:
            return False
        if not task_id or task_id in state.revoked:
            return False
        if not (consumer.disable_rate_limits or consumer.task_buckets[self.task.name] is None):
            return False
        if not consumer._maximum_prefetch_restored or (payload := decoded(message)) is None:
            return False
        request = Request(message, payload, self)
        if self.says_arrival and not (write_arrival and write_arrival(request)):
            about = {
                "id": task_id, "name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr, "eta": None,
            }  # fmt: skip
            celerys.logger.info(trace.LOG_RECEIVED, about, extra={"data": about})
        if signals.task_received.receivers:
            self.send_received(request=request)
        if self.is_watched():
            request.send_event(
                "task-received", name=request.name, args=request.argsrepr, kwargs=request.kwargsrepr, root_id=request.root_id,
                parent_id=request.parent_id, retries=headers.get("retries", 0), eta=None, expires=None,
            )  # fmt: skip
        state.task_reserved(request)
        for callback in consumer.on_task_message:
            callback(request)
        consumer.on_task_request(request)
        return True

    def arguments(self, request: Request) -> tuple[object, ...]:
        """What the pool calls its target with."""
        if not self.in_children:
            return (request,)
        # The body contains the arguments.
        about = {name: value for name, value in request.request_dict.items() if name not in ("args", "kwargs")}
        return request.type, request.id, about, request.body, request.content_type, request.content_encoding

    def run(self, request: Request) -> FailedValueRuntime:
        """Celery's fast_trace_task, in this process, where the body is already decoded."""
        about = request._request_dict | request._Request__payload[2] | {"is_eager": False}
        result, info, runtime, shown = self.trace(request.id, request._args, request._kwargs, about)
        return (1, result, runtime) if info else (0, shown, runtime)


def strategy(task: AnyTask, app: Celery, consumer: WorkerConsumer) -> Callback:
    """Celery's default strategy of a task, with the fast path as its attribute `path` if the task may take it."""
    handle = celerys.default(task, app, consumer)
    if task.acks_late and task.Request == REQUEST and kombus_reader():
        vars(handle)["path"] = FastPath(task, app, consumer)
    return handle


class Step(bootsteps.StartStopStep):
    """Opens the fast path in a worker with group commit (`celery_kit/engine/commit_worker.py`): `worker/dead_lettering.py`
    calls it before Celery's handler.
    """

    label = "Fast path"
    requires = ("celery_kit.engine.commit_worker:Step",)

    def include_if(self, parent: WorkerConsumer) -> bool:
        """Whether the fast path is on, and results are stored in groups."""
        return store_of(parent.app) is not None and on("fast_path")

    def create(self, parent: WorkerConsumer) -> None:
        """Give tasks with Celery's Strategy the one of this module."""
        for task in parent.app.tasks.values():
            if task.Strategy == CELERYS_STRATEGY:
                task.Strategy = STRATEGY
        parent.fast_path = handler(parent)


def handler(consumer: WorkerConsumer) -> Callable[[Message], bool]:
    """A function that passes a message to the pool if it may take the fast path, and returns whether it did."""
    strategies = consumer.strategies

    def take(message: Message) -> bool:
        headers = message.headers
        name = headers.get("task") if type(headers) is dict else None
        path = getattr(strategies.get(name), "path", None) if type(name) is str else None
        return path is not None and path(message, headers)

    return take
