"""A `delay()` like the one before it, without Celery's way from a call to its message: in a third of plain Celery's processor
time, 210 us for 620 on RabbitMQ (confirmed, quorum queue), 165 us for 630 on Redis.

The first `delay()` of a task goes all the way through Celery - the task's options, its route, its headers, its queue -, up to
where it would be published, as the first of a `send_many` does. Those after it differ in their ids, times and arguments only,
and are made from it, until something changes that Celery would look at: a setting, the task's options, a queue. So are those of
an `apply_async` that names a queue or a priority, of each one its own first, and of `send_task`. A call goes Celery's way that
has other options (countdown, link, headers …), is made by a task or within a correlation, or that somebody would see: a
signal's receiver, a router that is a function. However it was made, a message is published, confirmed and tried again in the
same manner.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from celery.app import task as celerys

from celery_kit.base.correlation import given, now
from celery_kit.base.ids import new_id
from celery_kit.base.messages import Part
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import kombus_writer
from celery_kit.produce.bulk import OWN_FILES, Call, Model, Sender, check_arguments, is_celerys, publishing_is_seen, way

CelerysTask: Any = celerys.Task  # its stubs know little of it
_NOTHING: dict[str, Any] = {}
#: Options that are the same for many calls.
KEPT = frozenset(("queue", "priority"))
#: Plans that are kept: a program that makes up queues' names must not fill its memory with them.
_MOST = 1_000


class Task(CelerysTask):  # type: ignore[misc]
    """Celery's, with a shorter way for a plain `delay()`."""

    abstract = True

    def apply_async(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        if not more and options.keys() <= KEPT:
            delays = getattr(self._get_app(), "delays", None)
            if delays and (result := delays.send(self, args or (), kwargs or _NOTHING, options)):
                return result
        return super().apply_async(args, kwargs, *more, **options)


OWN_FILES.add(Task.apply_async.__code__.co_filename)


class Named:
    """A task by its name, for `send_task`; as a task where that makes a difference. Of one that the app knows Celery takes the
    options - a queue, a priority … -, and does not look at its arguments.
    """

    typing = False
    ignore_result = None
    shadow_name = CelerysTask.shadow_name
    _dump_pydantic_arguments = None

    def __init__(self, app: Any, name: str) -> None:
        self.app, self.name = app, name

    def _get_exec_options(self) -> dict[str, Any]:
        task = self.app._tasks.get(self.name)  # as Celery looks: without having all of them loaded
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
    """What a task's calls have in common. `made_from`: what Celery would look at. `model`: None where each call is Celery's."""

    made_from: tuple[Any, ...]
    queues: dict[str, Any]
    ignore_result: bool
    model: Model | None = None
    declare: Sequence[Any] = ()
    patience: float = 0.0
    acquire: float | None = None


class Delays:
    """The plans of an app's tasks. `send_task`: the app's; where another stands in its place, that sees each call."""

    def __init__(self, app: Any, send_task: Any) -> None:
        self.app, self.send_task = app, send_task
        self._plans: dict[tuple[Any, ...], _Plan] = {}

    @cached_property
    def amqp(self) -> Any:
        return self.app.amqp

    def send(self, task: Any, args: Any, kwargs: Any, options: dict[str, Any]) -> Any:
        """Publish, and give the result; None where that is Celery's. Raises as apply_async. `options`: of KEPT."""
        app = self.app
        if not on("alike") or publishing_is_seen() or given() is not None or app.current_worker_task or not kombus_writer():
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
        model = plan.model
        if model is None:
            return None
        try:
            part = model.part(new_id(), args, kwargs, now(), app.thread_oid)
        except (TypeError, ValueError):  # Celery says what JSON does not know
            return None
        return self._publish(plan, task, part)

    def _looked_at(self, task: Any) -> tuple[Any, ...]:
        app = self.app
        conf, ways = app.conf, (getattr(app.send_task, "__func__", None), *way(task))
        # A forked child has another origin.
        return conf, conf.changes, task._get_exec_options(), task.ignore_result, self.amqp.routes, ways, os.getpid()

    def _holds(self, plan: _Plan, task: Any) -> bool:
        found = self.amqp.queues.get
        return plan.made_from == self._looked_at(task) and all(found(name) is queue for name, queue in plan.queues.items())

    def _learn(self, key: tuple[Any, ...], task: Any, args: Any, kwargs: Any, given: dict[str, Any]) -> Any:
        """Send a call Celery's way, and keep what those like it will need."""
        app = self.app
        if len(self._plans) >= _MOST:
            self._plans.clear()
        conf, changes, options, *rest = self._looked_at(task)
        made_from = (conf, dict(changes), dict(options), *rest)
        with app.producer_or_acquire() as producer:
            sender = Sender(app, task, given, producer)
            plan = _Plan(made_from, {}, task.ignore_result)
            if self._is_celerys(task, producer) or sender.each_is_seen:
                self._plans[key] = plan
                return None
            part = sender.recorded(Call(args, kwargs))
            declare = sender.recorder.taken[10] or ()
            queues = {queue.name: self.amqp.queues.get(queue.name) for queue in declare}
            patience = producer.patience_of(conf.task_publish_retry_policy)
            plan = replace(
                plan,
                queues=queues,
                model=sender.model(part),
                declare=declare,
                patience=patience,
                acquire=conf.broker_pool_acquire_timeout,
            )
            self._plans[key] = plan
        return self._publish(plan, task, part)

    def _is_celerys(self, task: Any, producer: Any) -> bool:
        """Each call of this task asks for more than a message like the one before it."""
        app = self.app
        return bool(
            not getattr(producer, "like", None)
            or getattr(app.send_task, "__func__", None) is not self.send_task
            or not all(map(is_celerys, way(task)))
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
            producer.patiently(step, plan.patience)
        result = task.AsyncResult(part.id)
        result.ignored = plan.ignore_result
        return result
