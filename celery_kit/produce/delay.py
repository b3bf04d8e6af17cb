"""A `delay()` whose message is made from the pattern of the one before it (`alike.py`), in a third of plain Celery's CPU time.

A pattern is used until something changes that Celery would read: a setting, the task's options, a queue. An `apply_async` with
a queue or a priority, and a `send_task`, have patterns of their own. Celery makes the message of any other call: with other
options (countdown, link, headers …), by a task or within a correlation, or if a signal's receiver or a router has to see it.
Either way a message is published, confirmed and tried again alike.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from celery.app import task as celerys

from celery_kit.base.correlation import given, now
from celery_kit.base.ids import new_id
from celery_kit.base.messages import Part
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import kombus_writer
from celery_kit.produce.alike import OWN_FILES, Call, Maker, Pattern, check_arguments, path, publishing_has_receivers

CelerysTask: Any = celerys.Task  # its stubs know little of it
_NOTHING: dict[str, Any] = {}
#: Options of which each combination has patterns of its own.
KEPT = frozenset(("queue", "priority"))
#: The largest number of plans: a program that makes up names of queues must not fill its memory with them.
_MOST = 1_000


class Task(CelerysTask):  # type: ignore[misc]
    """Celery's, with a shorter path for a plain `delay()`."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        if not more and options.keys() <= KEPT:
            delays = getattr(self._get_app(), "delays", None)
            if delays and (result := delays.send(self, args or (), kwargs or _NOTHING, options)):
                return result
        return super().apply_async(args, kwargs, *more, **options)


OWN_FILES.add(Task.apply_async.__code__.co_filename)


class Named:
    """A task by its name, for `send_task`, in place of a task. If the app knows the task, Celery uses its options (a queue, a
    priority …) and does not check its arguments.
    """

    typing = False
    ignore_result = None
    shadow_name = CelerysTask.shadow_name
    _dump_pydantic_arguments = None

    def __init__(self, app: Any, name: str) -> None:
        self.app, self.name = app, name

    def _get_exec_options(self) -> dict[str, Any]:
        task = self.app._tasks.get(self.name)  # as Celery does, without loading all tasks
        return task._get_exec_options() if task else _NOTHING

    @property
    def expires(self) -> Any:
        return self._get_exec_options().get("expires")

    @property
    def serializer(self) -> Any:
        return self._get_exec_options().get("serializer")

    def apply_async(self, args: Any, kwargs: Any, **options: Any) -> Any:
        return self.app.send_task(self.name, args, kwargs, **options)

    def AsyncResult(self, task_id: str) -> Any:
        return self.app.AsyncResult(task_id)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a task's calls have in common. `made_from`: what Celery would read. `pattern`: None if Celery makes each message."""

    made_from: tuple[Any, ...]
    queues: dict[str, Any]
    ignore_result: bool
    pattern: Pattern | None = None
    declare: Sequence[Any] = ()
    timeout: float = 0.0
    acquire: float | None = None


class Delays:
    """The plans of an app's tasks. `send_task`: the app's own; if another one has replaced it, that sees each call."""

    def __init__(self, app: Any, send_task: Any) -> None:
        self.app, self.send_task = app, send_task
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    @cached_property
    def amqp(self) -> Any:
        return self.app.amqp

    def send(self, task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Publish, and return the result; None if Celery has to do so. Raises as apply_async. `options`: of KEPT."""
        app = self.app
        if (
            not on("alike")
            or publishing_has_receivers()
            or given() is not None
            or app.current_worker_task
            or not kombus_writer()
        ):
            return None
        if type(args) not in (tuple, list) or type(kwargs) is not dict:
            return None
        if task.typing:
            check_arguments(task, args, kwargs)
        key: tuple[Any, ...] = (task.name, type(task) is Named)
        if options:
            if not all(type(value) in (str, int) for value in options.values()):
                return None
            key = (*key, *sorted(options.items()))
        plan = self._plans.get(key)
        if plan is None or not self._holds(plan, task):
            return self._learn(key, task, args, kwargs, options)
        if plan.pattern is None:
            return None
        try:
            part = plan.pattern.part(new_id(), args, kwargs, now(), app.thread_oid)
        except (TypeError, ValueError):  # Celery reports what JSON does not know
            return None
        return self._publish(plan, task, part)

    def _looked_at(self, task: Any) -> tuple[Any, ...]:
        app = self.app
        conf, functions = app.conf, (getattr(app.send_task, "__func__", None), *path(task))
        # A forked child has another origin.
        return conf, conf.changes, task._get_exec_options(), task.ignore_result, self.amqp.routes, functions, os.getpid()

    def _holds(self, plan: _Plan, task: Any) -> bool:
        found = self.amqp.queues.get
        return plan.made_from == self._looked_at(task) and all(found(name) is queue for name, queue in plan.queues.items())

    def _learn(self, key: tuple[Any, ...], task: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
        """Have Celery make the message of a call, and store the plan for those like it."""
        app = self.app
        if len(self._plans) >= _MOST:
            self._plans.clear()
        conf, changes, options, *rest = self._looked_at(task)
        made_from = (conf, dict(changes), dict(options), *rest)
        with app.producer_or_acquire() as producer:
            maker = Maker(app, task, given, producer)
            if maker.celery_makes_each or self._is_celerys(task, producer):
                self._plans[key] = _Plan(made_from, {}, task.ignore_result)
                return None
            part = maker.recorded(Call(args, kwargs))
            declare = maker.recorder.taken[10] or ()
            queues = {queue.name: self.amqp.queues.get(queue.name) for queue in declare}
            waits = producer.timeout_of(conf.task_publish_retry_policy), conf.broker_pool_acquire_timeout
            plan = _Plan(made_from, queues, task.ignore_result, maker.pattern(part), declare, *waits)
            self._plans[key] = plan
        return self._publish(plan, task, part)

    def _is_celerys(self, task: Any, producer: Any) -> bool:
        """Whether Celery has to make each message of this task."""
        app = self.app
        return bool(
            not getattr(producer, "like", None)
            or getattr(app.send_task, "__func__", None) is not self.send_task
            or app.spooled
            or app.conf.task_always_eager
            or not app.conf.task_publish_retry
            or type(task).shadow_name is not CelerysTask.shadow_name
            or task._dump_pydantic_arguments
            or task.expires
        )

    def _publish(self, plan: _Plan, task: Any, part: Part) -> Any:
        backend = self.app.backend

        def step() -> None:
            if not plan.ignore_result:
                backend.on_task_call(producer, part.id)
            producer.publish_like(part, plan.declare)

        with self.amqp.producer_pool.acquire(block=True, timeout=plan.acquire) as producer:
            producer.with_retries(step, plan.timeout)
        result = task.AsyncResult(part.id)
        result.ignored = plan.ignore_result
        return result
