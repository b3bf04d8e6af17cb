"""A `delay()` whose message is made from the pattern of the one before it (`alike.py`), in a third of plain Celery's CPU time.

A pattern is used until something changes that Celery would read: a setting, the task's options, a queue. An `apply_async` with
a queue or a priority, and a `send_task`, have patterns of their own. Celery makes the message of any other call: one with other
options (countdown, link, headers …), one by a task or within a correlation, and one that a signal's receiver or a router has to
see. Every message is published, confirmed and retried in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from celery.app import task as celerys

from celery_kit.base.correlation import given, now
from celery_kit.base.ids import new_id
from celery_kit.base.messages import Part
from celery_kit.engine.parts import DELAY
from celery_kit.engine.quick_json import kombus_writer
from celery_kit.produce.alike import OWN_FILES, Call, Maker, Pattern, check_arguments, path, publishing_has_receivers

if TYPE_CHECKING:
    from kombu import Exchange, Queue

    from celery_kit.base.types import AnyResult, Headers, Options
    from celery_kit.kit import Kit
    from celery_kit.produce.publishing import AMQP

CelerysTask: Any = celerys.Task  # the stubs lack what is used here
_NOTHING: Options = {}
#: Options of apply_async of which each combination has a pattern of its own.
KEPT = frozenset(("queue", "priority"))
#: The largest number of plans, so that a program which makes up names of queues does not fill its memory with them.
_MOST = 1_000
#: What Celery reads to make a task's message, and the functions that a call passes.
Inputs: TypeAlias = tuple[object, ...]


class Task(CelerysTask):  # type: ignore[misc]
    """Celery's, with a shorter path for a plain `delay()`."""

    abstract = True

    def apply_async(
        self, args: Sequence[object] | None = None, kwargs: Options | None = None, *more: object, **options: object
    ) -> AnyResult:
        """Send the task, as Celery's. Raises OperationalError if the broker is unavailable."""
        if not more and options.keys() <= KEPT:
            delays: Delays | None = getattr(self._get_app(), "delays", None)
            if delays and (result := delays.send(self, args or (), kwargs or _NOTHING, options)):
                return result
        sent: AnyResult = super().apply_async(args, kwargs, *more, **options)
        return sent


OWN_FILES.add(__file__)  # of `Task.apply_async`, and of that of Named


class Named(CelerysTask):  # type: ignore[misc]
    """A task's name, for `send_task`, in place of a task. If the app has the task, Celery uses its options (a queue, a
    priority …), and does not check its arguments.
    """

    typing = False

    def __init__(self, kit: Kit, name: str) -> None:
        self.kit, self.name = kit, name

    def _get_exec_options(self) -> Headers:
        task = vars(self.kit)["_tasks"].get(self.name)  # as Celery does, without loading all tasks
        return task._get_exec_options() if task else _NOTHING

    @property
    def expires(self) -> object:
        """When a message of the task expires, if the task has such an option."""
        return self._get_exec_options().get("expires")

    @property
    def serializer(self) -> str | None:
        """The serializer of the task's messages, if the task has such an option."""
        return self._get_exec_options().get("serializer")

    def apply_async(self, args: Sequence[object], kwargs: Options, **options: object) -> AnyResult:
        """Send the task by its name. Raises as send_task."""
        send: Callable[..., AnyResult] = self.kit.send_task
        return send(self.name, args, kwargs, **options)

    def AsyncResult(self, task_id: str) -> AnyResult:
        """The result of a message with this id."""
        return self.kit.AsyncResult(task_id)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a task's calls have in common. `pattern`: None if Celery makes each message. Times are in seconds."""

    inputs: Inputs
    queues: Mapping[str, Queue]
    ignore_result: bool
    pattern: Pattern | None = None
    declare: Sequence[Exchange | Queue] = ()
    timeout: float = 0.0
    acquire: float | None = None


class Delays:
    """The plans of an app's tasks."""

    def __init__(self, app: Kit) -> None:
        self.app = app
        self._plans: dict[tuple[object, ...], _Plan] = {}

    @cached_property
    def amqp(self) -> AMQP:
        """The app's."""
        return self.app.amqp

    def send(self, task: Task | Named, args: Sequence[object], kwargs: Options, options: Options) -> AnyResult | None:
        """Publish, and return the result; None if Celery has to do so. `options`: those in KEPT. Raises as apply_async."""
        if publishing_has_receivers() or not kombus_writer() or given() is not None or self.app.current_worker_task:
            return None
        if type(args) not in (tuple, list) or type(kwargs) is not dict:
            return None
        if not all(type(value) in (str, int) for value in options.values()):
            return None
        if task.typing:
            check_arguments(task, args, kwargs)
        key = (task.name, type(task) is Named, *sorted(options.items()))
        plan = self._plans.get(key)
        if plan is None or not self._is_current(plan, task):
            return self._make_plan(key, task, Call(args, kwargs), options)
        if plan.pattern is None:
            return None
        try:
            part = plan.pattern.part(new_id(), args, kwargs, now(), self.app.thread_oid)
        except (TypeError, ValueError):  # Celery reports what JSON cannot represent
            return None
        return self._publish(plan, task, part)

    def _inputs(self, task: Task | Named) -> Inputs:
        conf, options, functions = self.app.conf, task._get_exec_options(), path(self.app, task)
        changes = conf.changes and {**conf.changes}
        # A forked child has another origin.
        return conf, changes, {**options}, task.ignore_result, self.amqp.routes, functions, os.getpid()

    def _is_current(self, plan: _Plan, task: Task | Named) -> bool:
        found = self.amqp.queues.get
        return plan.inputs == self._inputs(task) and all(found(name) is queue for name, queue in plan.queues.items())

    def _make_plan(self, key: tuple[object, ...], task: Task | Named, call: Call, options: Options) -> AnyResult | None:
        """Have Celery make the message of a call, and store the plan for those like it."""
        if len(self._plans) >= _MOST:
            self._plans.clear()
        conf, inputs, ignored = self.app.conf, self._inputs(task), bool(task.ignore_result)
        with self.app.producer_or_acquire() as producer:
            maker = Maker(self.app, task, options, producer, DELAY)
            if maker.celery_makes_each:
                self._plans[key] = _Plan(inputs, {}, ignored)
                return None
            part, pattern = maker.first(call)
            declare = maker.recorder.recorded.declare or ()
            queues = {queue.name: self.amqp.queues.get(queue.name) for queue in declare}
            waits = producer.timeout_of(conf.task_publish_retry_policy), conf.broker_pool_acquire_timeout
            plan = self._plans[key] = _Plan(inputs, queues, ignored, pattern, declare, *waits)
        return self._publish(plan, task, part)

    def _publish(self, plan: _Plan, task: Task | Named, part: Part) -> AnyResult:
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
