"""States that a task stores besides its final one, and where the final one is visible."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any
from uuid import uuid4

from celery import signals
from celery.app.task import Task
from celery.exceptions import Ignore, Reject
from celery.result import allow_join_result

from tests.compat.side import app
from tests.harness.waiting import settled

#: Number of tasks at once: the kit has different code to store the result of a single task and those of a busy worker.
MANY = 8


def _until(look: Callable[[], Any], wanted: Any, seconds: float = 15.0) -> Any:
    """Poll `look`. Returns its first wanted value, or the last one after a time limit."""
    return settled(look, lambda seen: seen == wanted, seconds)


# Final states of other tasks

STORES: dict[str, Callable[[Any, str], None]] = {
    "store_result": lambda task, other: task.backend.store_result(other, other, "SUCCESS"),
    "store_result, with the request": lambda task, other: task.backend.store_result(
        other, other, "SUCCESS", request=task.request
    ),
    "mark_as_done": lambda task, other: task.backend.mark_as_done(other, other),
    "mark_as_done, with the request": lambda task, other: task.backend.mark_as_done(other, other, task.request),
    "update_state": lambda task, other: task.update_state(task_id=other, state="SUCCESS", meta=other),
    "mark_as_failure": lambda task, other: task.backend.mark_as_failure(other, ValueError(other)),
}


@app.task(name="results.others", bind=True)
def others(self: Any, how: str, ids: list[str]) -> str:
    for one in ids:
        STORES[how](self, one)
    return "its own"


def stored_for_others() -> dict[str, Any]:
    """The states of 20 other tasks, and of the task that stored them."""
    sent = {how: [str(uuid4()) for _ in range(20)] for how in STORES}
    runs = {how: [others.delay(how, ids) for _ in range(3)] for how, ids in sent.items()}
    return {
        how: [
            [run.get(timeout=20) for run in runs[how]],
            [(found.state, str(found.result) == one) for one in ids for found in [app.AsyncResult(one)]],
        ]
        for how, ids in sent.items()
    }


# States that a task stores before its final one

ENDS = ("ignores", "rejects", "retries", "says", "starts", "fails", "returns")


@app.task(name="results.says", bind=True, max_retries=1)
def says(self: Any, end: str, by: str) -> str:
    if self.request.retries:
        return "the second run"
    if by == "mark_as_done":
        self.backend.mark_as_done(self.request.id, "said", self.request)
    else:
        self.update_state(state="SUCCESS", meta="said")
    if end == "ignores":
        raise Ignore
    if end == "rejects":
        raise Reject("no", requeue=False)
    if end == "retries":
        raise self.retry(countdown=0)
    if end == "says":
        self.update_state(state="PROGRESS", meta={"current": 1})
    if end == "starts":
        self.update_state(state="STARTED")
    if end == "fails":
        raise ValueError
    return "its end"


def said() -> dict[str, Any]:
    """The final states of tasks that have stored SUCCESS themselves, and then ended in different ways."""
    sent = {(end, by): [says.delay(end, by) for _ in range(MANY)] for end in ENDS for by in ("update_state", "mark_as_done")}
    for runs in sent.values():
        for run in runs:
            _until(lambda run=run: run.state, "SUCCESS", 10)  # type: ignore[misc]
    others.delay("store_result", []).get(timeout=20)  # the task after them
    return {", ".join(way): [(run.state, run.result) for run in map(_fresh, runs)] for way, runs in sent.items()}


def _fresh(run: Any) -> Any:
    app.backend._cache.clear()
    return app.AsyncResult(run.id)


@app.task(name="results.waits", bind=True)
def waits(self: Any, by: str, go: str) -> str:
    STORES[by](self, self.request.id)
    _until(lambda: app.AsyncResult(go).state, "SUCCESS")
    return "its end"


def seen_while_it_runs() -> dict[str, str]:
    """The state of a task that has stored SUCCESS and is still running."""
    seen = {}
    for by in ("update_state", "store_result", "mark_as_done, with the request"):
        run, go = waits.delay(by, go_on := str(uuid4())), go_on
        seen[by] = _until(lambda run=run: _fresh(run).state, "SUCCESS", 5)  # type: ignore[misc]
        app.backend.store_result(go, None, "SUCCESS")
    return seen


# Where the final state is visible

VIEWERS = ("task_success", "task_postrun", "on_success", "after_return", "link")


def _state(task_id: str) -> str:
    return str(app.AsyncResult(task_id).state)


def _get(task_id: str) -> str:
    with allow_join_result():
        return str(app.AsyncResult(task_id).get(timeout=3) and "SUCCESS")


def _by_hand(task_id: str) -> str:
    raw = app.backend.client.get(app.backend.get_key_for_task(task_id))
    return str(json.loads(raw)["status"]) if raw else "PENDING"


LOOKS: dict[str, Callable[[str], str]] = {
    "state": _state,
    "get": _get,
    "the client": _by_hand,
    "get_many": lambda task_id: next(iter(app.backend.get_many([task_id], timeout=3)))[1]["status"],
    "task_result_exists": lambda task_id: "SUCCESS" if app.backend.task_result_exists(task_id) else "PENDING",
}


def _look(viewer: str, asked: Any, task_id: str) -> None:
    wanted, how = asked
    if viewer == wanted:
        try:
            seen = LOOKS[how](task_id)
        except Exception as error:
            seen = repr(error)
        app.backend.store_result(f"{task_id}-seen", seen, "SUCCESS")


class Hooked(Task):  # type: ignore[type-arg]
    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        _look("on_success", args, task_id)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        _look("after_return", args, task_id)


@app.task(name="results.viewed")
def viewed(viewer: str, how: str) -> str:
    return viewer


@app.task(name="results.hooked", base=Hooked)
def hooked(viewer: str, how: str) -> str:
    return viewer


@app.task(name="results.linked", bind=True)
def linked(self: Any, result: str, how: str) -> None:
    """A callback may begin shortly before its task's result is stored, with Celery as well."""
    _until(partial(_state, self.request.parent_id), "SUCCESS", 3)
    _look("link", ("link", how), self.request.parent_id)


@signals.task_success.connect(weak=False)
def _succeeded(sender: Any, **_: Any) -> None:
    if sender.name == "results.viewed":
        _look("task_success", sender.request.args, sender.request.id)


@signals.task_postrun.connect(weak=False)
def _ended(task: Any, task_id: str, args: Any, **_: Any) -> None:
    if task.name == "results.viewed":
        _look("task_postrun", args, task_id)


def views() -> dict[str, Any]:
    """The states that code in the worker sees when a task has ended."""
    sent: dict[str, list[Any]] = {}
    for viewer in VIEWERS:
        for how in LOOKS:
            task = hooked if viewer in ("on_success", "after_return") else viewed
            options = {"link": linked.s(how)} if viewer == "link" else {}
            sent[f"{viewer}, by {how}"] = [task.apply_async((viewer, how), **options) for _ in range(MANY)]
    seen = {}
    for view, runs in sent.items():
        found = [app.AsyncResult(f"{run.id}-seen") for run in runs]
        seen[view] = sorted({_until(lambda one=one: one.result, "SUCCESS", 10) for one in found}, key=repr)  # type: ignore[misc]
    return seen


@app.task(name="results.reader")
def reader(how: str, before: str) -> str:
    return LOOKS[how](before)


def siblings() -> dict[str, list[str]]:
    """What a task sees of the one before it, in a worker with a concurrency of one."""
    sent = {how: [] for how in LOOKS if how != "the client"}  # type: dict[str, list[Any]]
    for how, runs in sent.items():
        for _ in range(MANY):
            runs.append(reader.delay(how, viewed.delay("nobody", how).id))
    return {how: sorted({run.get(timeout=30) for run in runs}) for how, runs in sent.items()}
