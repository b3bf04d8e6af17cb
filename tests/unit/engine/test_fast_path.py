"""The fast path does what Celery's does: both are asked, and their answers are compared."""

import json
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from celery import Celery, signals
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject
from celery.utils.saferepr import saferepr
from celery.worker import state
from kombu.message import Message
from kombu.utils import json as kombus_json

from celery_kit.engine import commit_worker, fast_path, quick_json, trace
from celery_kit.engine.commit import REQUEST
from celery_kit.worker.dead_lettering import DeadLettering

HOST = "worker@here"
request_class: Any = import_module("celery.worker.request").create_request_cls
EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
SEEN = (signals.task_prerun, signals.task_postrun, signals.task_success, signals.task_failure, signals.task_retry)


@pytest.fixture(autouse=True)
def _only_these_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    for signal in (*SEEN, signals.task_received):
        monkeypatch.setattr(signal, "receivers", [])


@pytest.fixture
def app() -> Celery:
    app = Celery("tasks", backend="cache+memory://", broker="memory://", set_as_current=False)
    app.conf.update(task_acks_late=True, task_track_started=True)
    app.finalize()
    return app


@pytest.fixture
def seen() -> Iterator[list[Any]]:
    """The names of the signals that are sent, with the state that the last one tells."""
    found: list[Any] = []

    def note(signal: Any, **given: Any) -> None:
        found.append((signal.name, given.get("state"), repr(given.get("result", given.get("exception")))))

    for signal in SEEN:
        signal.connect(note, weak=False)
    yield found
    for signal in SEEN:
        signal.disconnect(note)


def headers(name: str, **more: Any) -> dict[str, Any]:
    return {
        "lang": "py", "task": name, "id": "id-1", "root_id": "root-1", "parent_id": None, "group": None, "shadow": None,
        "eta": None, "expires": None, "retries": 0, "timelimit": [None, None], "argsrepr": "(1,)", "kwargsrepr": "{}",
        "origin": "here", "ignore_result": False, "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
        "sent": 12.5, **more,
    }  # fmt: skip


def request(task: str, **more: Any) -> dict[str, Any]:
    about = {"hostname": HOST, "delivery_info": {"routing_key": "q", "priority": None}, "is_eager": False, **EMBED}
    return headers(task, **more) | about


class LostError(Exception):
    """A task's own."""


def ends(how: str) -> Any:
    def run(self: Any, value: Any = 1) -> Any:
        assert self.request.id == "id-1"
        if how == "fails":
            raise LostError(value)
        if how == "ignores":
            raise Ignore
        if how == "rejects":
            raise Reject("no", requeue=False)
        if how == "retries":
            raise self.retry(countdown=1, throw=True)
        return {"class": LostError} if how == "cannot be written" else [value, "text", None]

    return run


@pytest.mark.parametrize("how", ["succeeds", "fails", "ignores", "rejects", "retries", "cannot be written"])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_run_ends_as_celerys_trace_would_have_it(app: Celery, seen: list[Any], how: str, ignored: bool) -> None:
    task = app.task(name=f"ends.{how}.{ignored}", bind=True, shared=False)(ends(how))
    found = []
    for traced in (build_tracer(task.name, task, app.loader, HOST, app=app), trace.quick(task, app, HOST)):
        seen.clear()
        task.backend.forget("id-1")
        result, info, runtime, text = traced("id-1", [7], {}, request(task.name, ignore_result=ignored))
        assert (runtime is None) == (how != "succeeds" and not (ignored and how == "cannot be written"))
        found.append((type(result), type(info), info and info.state, text, list(seen), app.AsyncResult("id-1").state))
        assert not task.request_stack.stack
    assert found[0] == found[1]
    assert trace.quick(task, app, HOST).__module__ == trace.__name__


def test_what_a_package_puts_around_celerys_trace_at_any_time_is_kept(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function of Celery's that packages wrap is looked up when it is called, not when the kit's module is imported."""
    task: Any = app.task(name="wrapped", shared=False)(plain)
    wrapped: list[str] = []

    def around(name: str, *args: Any, **options: Any) -> Any:
        wrapped.append(name)
        inner = build_tracer(name, *args, **options)
        return lambda *given: inner(*given)

    monkeypatch.setattr("celery.app.trace.build_tracer", around)  # as Sentry's integration does
    assert trace.quick(task, app, HOST).__module__ == __name__
    assert wrapped == ["wrapped"]


def test_the_context_is_celerys() -> None:
    for about in (request("a"), request("a", timelimit=[5, 3], custom="x"), request("a", headers={"own": 1})):
        args: Any = ([1], {"b": 2})
        mine = trace.context(about, *args)
        theirs = Context(about, args=args[0], called_directly=False, kwargs=args[1])
        assert vars(mine) == vars(theirs) | {"headers": theirs.headers}


@pytest.mark.parametrize("hook", ["before_start", "on_success", "after_return"])
def test_a_task_with_a_hook_of_its_own_has_celerys_trace(app: Celery, hook: str) -> None:
    base = type("Base", (app.Task,), {hook: lambda *_: None, "abstract": True})
    task: Any = app.task(name=f"hooked.{hook}", base=base, shared=False)(plain)
    assert trace.quick(task, app, HOST).__module__ == "celery.app.trace"


@pytest.mark.parametrize("value", [1, None, True, 0.5, "a'b", [1, {"a": "b"}], 10**2_000])
def test_a_value_is_shown_as_celery_shows_it(value: Any) -> None:
    assert trace.shown(value, 1_024) == saferepr(value, 1_024)


def test_what_is_read_is_what_kombu_reads() -> None:
    for value in ([[1], {}, EMBED], [["é"], {"a": {"__type__": "bytes", "__value__": "x"}}, {}], {"__type__": "no"}):
        body = json.dumps(value)
        for form in (body, body.encode()):
            assert trace.read(form, quick_json.JSON, "utf-8") == kombus_json.loads(body)


def plain(*_: Any) -> None: ...


def add(x: int, y: int = 1) -> int:
    return x + y


PARTS = {
    "request_dict", "body", "content_type", "content_encoding", "args", "kwargs", "argsrepr", "kwargsrepr", "id", "name",
    "type", "root_id", "parent_id", "eta", "expires", "delivery_info", "correlation_id", "reply_to", "hostname",
    "ignore_result", "chord", "errbacks", "group", "group_index", "time_limits", "stamps", "store_errors", "utc",
    "connection_errors",
}  # fmt: skip


class Stand:
    """A consumer, as far as a message goes through it; its pool takes what it is given and runs nothing."""

    def __init__(self, app: Celery) -> None:
        self.app, self.hostname, self.connection_errors = app, HOST, (ConnectionError,)
        self.event_dispatcher: Any = None
        self.disable_rate_limits, self._maximum_prefetch_restored = False, True
        self.task_buckets: dict[str, Any] = {}
        self.on_task_message: set[Any] = set()
        self.applied: list[Any] = []
        self.pool = SimpleNamespace(apply_async=self.apply, uses_semaphore=False)
        self.timer = SimpleNamespace(call_at=None)
        self.controller = SimpleNamespace(state=state)
        self.apply_eta_task = self._limit_task = self._limit_post_eta = None
        self.strategies: dict[str, Any] = {}
        self.fast_path: Any = None
        self.set_aside: list[Any] = []

    def apply(self, target: Any, args: Any, **options: Any) -> None:
        self.applied.append((target, args, options))

    def on_task_request(self, one: Any) -> None:
        one.execute_using_pool(self.pool)


@pytest.fixture
def stand(app: Celery) -> Iterator[Stand]:
    stand = Stand(app)
    task = app.task(name="add", Request=REQUEST, shared=False)(add)
    stand.task_buckets[task.name] = None
    consumer: Any = stand
    stand.strategies[task.name] = fast_path.strategy(task, app, consumer)
    yield stand
    state.reset_state()


def message(more: Any = None, body: Any = None, **options: Any) -> Any:
    text = json.dumps([[1], {"y": 2}, EMBED] if body is None else body)
    given: dict[str, Any] = {
        "headers": headers("add", **(more or {})), "content_type": "application/json", "content_encoding": "utf-8",
        "delivery_info": {"exchange": "e", "routing_key": "q"}, "properties": {"correlation_id": "id-1", "reply_to": "me"},
    }  # fmt: skip
    make: Any = Message
    return make(text.encode(), 5, accept={"application/json"}, **(given | options))


def on_message(stand: Stand) -> tuple[Any, list[Any]]:
    """A worker's handler of messages, and what went Celery's way."""
    others: list[Any] = []
    step: Any = DeadLettering.__new__(DeadLettering)
    step.connection_errors = ()
    step.limit = 5
    consumer: Any = stand
    stand.fast_path = fast_path.handler(consumer)
    stand.set_aside = []
    step.put = lambda _, message, reason: stand.set_aside.append((message, reason))
    return step.guarded(stand, lambda: others.append)(), others


def test_an_ordinary_message_takes_the_fast_path(stand: Stand) -> None:
    handle, others = on_message(stand)
    handle(message())
    ((target, (one,), options),) = stand.applied
    assert not others
    assert (one.id, one.name, one.args, one.kwargs) == ("id-1", "add", [1], {"y": 2})
    assert one in state.reserved_requests
    assert options["callback"] == one.on_success
    options["accept_callback"](11, 5.0)
    assert one in state.active_requests
    assert state.total_count["add"] == 1
    outcome = target(one)
    assert outcome[:2] == (0, "3")
    acked: list[int] = []
    one.message.channel = SimpleNamespace(no_ack_consumers=None, basic_ack=lambda tag, **_: acked.append(tag))
    one.on_success(outcome)
    assert acked == [5]
    assert not state.requests
    assert not state.active_requests


def test_the_request_is_celerys(stand: Stand) -> None:
    sent = message()
    handle, _ = on_message(stand)
    handle(sent)
    one = stand.applied[0][1][0]
    theirs = request_class(commit_worker.Request, one.task, stand.pool, HOST, None, app=stand.app)(
        sent,
        app=stand.app,
        hostname=HOST,
        task=one.task,
        body=sent.body,
        headers=sent.headers,
        connection_errors=(ConnectionError,),
    )
    for name in PARTS:
        assert getattr(one, name) == getattr(theirs, name), name
    assert one.info() == theirs.info()
    assert vars(one._context) == vars(theirs._context)


@pytest.mark.parametrize(
    "more",
    [
        {"eta": "2031-01-01T00:00:00+00:00"},
        {"expires": "2031-01-01T00:00:00+00:00"},
        {"timelimit": [5, None, 1]},
        {"timelimit": [5, "5"]},
        {"stamped_headers": ["a"], "stamps": {"a": "b"}},
        {"x-delivery-count": 1},
        {"id": None},
        {"id": ["1"]},
        {"task": "another"},
        {"task": []},
    ],
)
def test_what_asks_for_more_goes_celerys_way(stand: Stand, more: dict[str, Any]) -> None:
    handle, others = on_message(stand)
    one = message(more)
    handle(one)
    assert [*others, *(kept for kept, _ in stand.set_aside)] == [one]
    assert not stand.applied
    assert not state.requests


@pytest.mark.parametrize("body", [{}, [], [1, 2], [[], [], {}], [[], {}, None], [{}, {}, {}], "text"])
def test_a_body_of_another_shape_goes_celerys_way(stand: Stand, body: Any) -> None:
    handle, others = on_message(stand)
    handle(message(body=body))
    assert len(others + stand.set_aside) == 1


@pytest.mark.parametrize(
    "options", [{"content_type": "application/x-yaml"}, {"accept": {"application/x-yaml"}}, {"headers": None}, {"headers": {}}]
)
def test_another_kind_of_message_goes_celerys_way(stand: Stand, options: dict[str, Any]) -> None:
    handle, others = on_message(stand)
    one = message(**{key: value for key, value in options.items() if key != "accept"})
    one.accept = options.get("accept", one.accept)
    handle(one)
    assert others == [one]


def test_a_message_that_breaks_the_fast_path_is_set_aside(stand: Stand) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RecursionError("too deep")

    stand.strategies["add"].path.apply_async = broken
    handle, others = on_message(stand)
    one = message()
    handle(one)
    assert not others
    assert not state.requests
    assert not state.reserved_requests
    ((kept, reason),) = stand.set_aside
    assert kept is one
    assert "RecursionError" in reason


@pytest.mark.parametrize("why", ["revoked", "limited", "debug", "prefetch"])
def test_where_the_worker_has_more_to_do_a_message_goes_celerys_way(
    stand: Stand, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, others = on_message(stand)
    if why == "revoked":
        state.revoked.add("id-1")
    if why == "limited":
        stand.task_buckets["add"] = object()
    if why == "debug":
        monkeypatch.setitem(vars(import_module("celery.worker.request")), "_does_debug", True)
    if why == "prefetch":
        stand._maximum_prefetch_restored = False
    handle(message())
    assert len(others) == 1
    state.revoked.clear()


class Events:
    """A dispatcher that keeps what it is given."""

    enabled, groups = True, frozenset[str]()

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any]]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append((kind, fields))


@pytest.mark.parametrize("fails", [False, True])
def test_events_are_celerys(stand: Stand, app: Celery, fails: bool) -> None:
    """A message may take the fast path although its task's events are sent."""
    seen = []
    for fast in (True, False):
        stand.event_dispatcher, stand.applied = Events(), []
        consumer: Any = stand
        handle = fast_path.strategy(app.tasks["add"], app, consumer)
        if fast:
            stand.strategies["add"] = handle
            assert fast_path.handler(consumer)(message())
        else:
            handle(message(), None, *[lambda *_, **__: None] * 2, [])
        ((_, _, options),) = stand.applied
        one = options["callback"].__self__
        one.acknowledge = one._on_ack = one._on_reject = lambda *_, **__: None
        options["accept_callback"](11, 5.0)
        options["callback"]((1, info(LostError("no")), None) if fails else (0, "3", 0.5))
        seen.append(stand.event_dispatcher.sent)
    assert seen[0] == seen[1]
    assert [kind for kind, _ in seen[0]] == ["task-received", "task-started", "task-failed" if fails else "task-succeeded"]


def info(error: Exception) -> ExceptionInfo:
    try:
        raise error
    except Exception:
        return ExceptionInfo()


@pytest.mark.parametrize("options", [{"acks_late": False}, {"Request": "celery.worker.request:Request"}])
def test_a_task_of_another_kind_has_no_fast_path(stand: Stand, options: dict[str, Any]) -> None:
    task = stand.app.task(name="other", shared=False, **({"Request": REQUEST} | options))(plain)
    consumer: Any = stand
    assert not hasattr(fast_path.strategy(task, stand.app, consumer), "path")
