"""Messages that are made from one that Celery made, for `delay()` and `send_many`.

The first message of a task goes all the way through Celery - its routes, options and headers - up to where it would be
published. Later ones differ only in their ids, arguments and times, and are made from its pattern, unless something has to see
each of them: a signal's receiver, a router that is a function, an `apply_async` of the task's own.
"""

import sys
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu import Producer as KombuProducer

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import Part, Sample
from celery_kit.engine.quick_json import JSON, kombus_writer, text_of
from celery_kit.produce.publishing import brief, must_arrive

#: Headers of a task's message that may be left out, with the value that a worker then assumes.
SILENT: dict[str, Any] = {
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")),
    "retries": 0,
    "replaced_task_nesting": 0,
}
SEEN_BY = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)

#: The files of the functions that a call passes. A function that Sentry or others have put in their place is in another file.
OWN_FILES = {sys.modules[one.__module__].__file__ for one in (Task, Celery, KombuProducer)}


class Call(NamedTuple):
    """A task's arguments, and options of apply_async for this message alone: countdown, eta, priority, headers, task_id …"""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


class Pattern(NamedTuple):
    """What a task's messages have in common. `embed`: what follows the arguments in the body; `options`: apply_async's."""

    app: Any
    sample: Sample
    embed: Any
    options: Mapping[str, Any]

    def part(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], sent: float, reply_to: str) -> Part:
        """A message like the sample. Raises TypeError or ValueError for arguments that JSON does not know."""
        body = text_of([args, kwargs, self.embed]).encode()
        described = self._repr(args, "argsrepr"), self._repr(kwargs, "kwargsrepr")
        return Part(self.sample, task_id, body, *described, sent, reply_to)

    def _repr(self, value: Any, name: str) -> str:
        """The text of Celery's header of that name."""
        if name in self.options:
            return str(self.options[name])
        return brief(value) or saferepr(
            value, getattr(self.app.amqp, f"{name}_maxsize"), maxlevels=self.app.conf.task_repr_maxlevels
        )


class _Recorder(KombuProducer):
    """Records what Celery would publish, in place of the last step before the channel."""

    records: Any = True
    taken: Any = None
    raw: Any = None

    def __init__(self, producer: Any) -> None:
        self.with_retries = producer.with_retries
        super().__init__(producer.connection, auto_declare=False)

    def publish(self, body: Any, **options: Any) -> Any:  # type: ignore[override]  # kombu spells the options out
        self.raw = body
        return super().publish(body, **{**options, "retry": False})

    def _publish(self: Any, *message: Any, **_: Any) -> None:
        self.taken = message


class Maker:
    """Makes messages of one task, sent with these options over one producer."""

    def __init__(self, app: Any, task: Any, options: dict[str, Any], producer: Any) -> None:
        self.app, self.task, self.options, self.producer = app, task, options, producer
        self.recorder = _Recorder(producer)
        self.declared: dict[int, Any] = {}
        self.celery_makes_each = self._celery_makes_each()

    def pattern(self, part: Part) -> Pattern | None:
        """The pattern of the last recorded message; None if its body is not plain JSON."""
        if part.sample.headers.get("compression") or part.sample.content_type != JSON:  # as the task, or its route, asks
            return None
        return Pattern(self.app, part.sample, self.recorder.raw[2], self.options)

    def _celery_makes_each(self) -> bool:
        """Whether each message must be made by Celery: something has to see it, or its body is not plain JSON."""
        conf = self.app.conf
        return bool(
            publishing_has_receivers()
            or not kombus_writer()
            or not all(isinstance(route, MapRoute) for route in self.app.amqp.routes)
            or not all(map(is_celerys, path(self.task)))
            or conf.task_send_sent_event
            or conf.task_protocol != 2
            or self.options.get("compression")
            or conf.task_compression
            or (self.options.get("serializer") or self.task.serializer or conf.task_serializer) != "json"
        )

    def recorded(self, call: Call) -> Part:
        """The message of a call, made by Celery, with its queue declared. Raises as apply_async."""
        options = {**self.options, **call.options}
        result = self.task.apply_async(
            tuple(call.args), dict(call.kwargs), producer=self.recorder, add_to_parent=False, **options
        )
        body, priority, content_type, content_encoding, headers, properties, routing_key = self.recorder.taken[:7]
        mandatory, _, exchange, declare = self.recorder.taken[7:11]
        for entity in declare or ():
            if hash(entity) not in self.declared:
                self.producer.with_retries(lambda entity=entity: self.producer.maybe_declare(entity))
                self.declared[hash(entity)] = entity
        body = body if isinstance(body, bytes) else body.encode()
        about = priority, content_type, content_encoding, needed(headers), properties, exchange, routing_key
        sample = Sample(result.id, body, *about, bool(mandatory) or must_arrive(declare, exchange, routing_key))
        described = headers.get("argsrepr"), headers.get("kwargsrepr")
        return Part(sample, result.id, body, *described, headers.get(SENT, 0.0), properties["reply_to"])


def needed(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without those that may be left out: a broker and a worker parse each header of each message.

    Source: celery 5.7.0, docs/internals/protocol.rst, "optional"; celery/app/task.py, Context.
    """
    return {name: value for name, value in headers.items() if name not in SILENT or value != SILENT[name]}


def path(task: Any) -> tuple[Any, ...]:
    """The functions that a call of this task passes."""
    return getattr(task.apply_async, "__func__", None), Task.apply_async, Celery.send_task, KombuProducer.publish


def is_celerys(function: Any) -> bool:
    """Whether a function is Celery's or kombu's own, or the kit's for it, and not wrapped."""
    return type(function) is FunctionType and function.__code__.co_filename in OWN_FILES


def check_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises TypeError if the task does not take these, as apply_async does. A task that is a class takes any."""
    if check := getattr(task, "__header__", None):
        check(*args, **kwargs)


def publishing_has_receivers() -> bool:
    """Whether a signal of publishing has a receiver."""
    return any(signal.receivers for signal in SEEN_BY)
