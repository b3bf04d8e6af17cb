"""Messages that are made from one that Celery made, for `delay()` and `send_many`.

Celery makes the first message of a task completely, with its routes, options and headers, up to where it would be published.
Later ones differ only in their ids, arguments and times. They are made from the pattern of the first one, unless something has
to see each call: a signal's receiver, a router that is a function, an `apply_async` of the task's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu import Exchange, Queue
from kombu import Producer as KombuProducer

from celery_kit.base.correlation import SENT
from celery_kit.base.messages import Part, Sample
from celery_kit.base.types import AnyResult, AnyTask, Headers, Options
from celery_kit.engine.parts import DELAY, PRODUCER, SEND_MANY, on
from celery_kit.engine.quick_json import JSON, kombus_writer, text_of
from celery_kit.produce.publishing import Producer, brief, must_arrive

if TYPE_CHECKING:
    from kombu import Connection as KombusConnection

#: Headers of a task's message that may be left out, with the value that a worker then assumes.
SILENT: Options = {
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")),
    "retries": 0,
    "replaced_task_nesting": 0,
}
SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)

#: The files of the functions that a call passes. A function that a package such as Sentry puts in their place is in another.
OWN_FILES = {sys.modules[one.__module__].__file__ for one in (Task, Celery, KombuProducer)}


class Call(NamedTuple):
    """A task's arguments, and options of apply_async for this message alone: countdown, eta, priority, headers, task_id …"""

    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = {}
    options: Mapping[str, object] = {}


class Published(NamedTuple):
    """What kombu's producer gives its last step before the channel. Source: kombu/messaging.py 5.7.0, Producer._publish."""

    body: bytes | str
    priority: int | None
    content_type: str
    content_encoding: str
    headers: Headers
    properties: Headers
    routing_key: str
    mandatory: bool
    immediate: bool
    exchange: str
    declare: Sequence[Exchange | Queue] | None


class Pattern(NamedTuple):
    """What a task's messages have in common. `embed`: what follows the arguments in the body; `options`: apply_async's."""

    app: Celery
    sample: Sample
    embed: object
    options: Mapping[str, object]

    def part(self, task_id: str, args: Sequence[object], kwargs: Mapping[str, object], sent: float, reply_to: str) -> Part:
        """A message like the sample. Raises TypeError or ValueError for arguments that JSON cannot represent.

        `sent`: seconds since the epoch.
        """
        body = text_of([args, kwargs, self.embed]).encode()
        described = self._repr(args, "argsrepr"), self._repr(kwargs, "kwargsrepr")
        return Part(self.sample, task_id, body, *described, sent, reply_to)

    def _repr(self, value: Sequence[object] | Mapping[str, object], name: str) -> str:
        """The text of Celery's header of that name."""
        if name in self.options:
            return str(self.options[name])
        return brief(value) or saferepr(
            value, getattr(self.app.amqp, f"{name}_maxsize"), maxlevels=self.app.conf.task_repr_maxlevels
        )


class Recorder(KombuProducer):
    """Records what Celery would publish, in place of the last step before the channel.

    `raw`: the body before it is serialized.
    """

    records = True
    raw: tuple[object, object, object]
    recorded: Published

    def __init__(self, producer: KombuProducer) -> None:
        self.with_retries: Callable[..., object] = getattr(producer, "with_retries", lambda step: step())
        super().__init__(cast("KombusConnection", producer.connection), auto_declare=False)

    def publish(self, body: Any, **options: Any) -> None:  # type: ignore[override]  # kombu spells the options out
        """Record a message."""
        self.raw = body
        super().publish(body, **{**options, "retry": False})

    def _publish(self, *message: Any, **_: object) -> None:
        self.recorded = Published(*message[: len(Published._fields)])


class Maker:
    """Makes messages of one task, sent with these options over one producer. `side`: DELAY or SEND_MANY."""

    def __init__(self, app: Celery, task: AnyTask, options: Options, producer: Producer, side: str) -> None:
        self.app, self.task, self.options, self.producer = app, task, options, producer
        self.recorder = Recorder(producer)
        #: What this producer has declared, by its hash.
        self.declared: dict[int, Exchange | Queue] = {}
        self.celery_makes_each = any(reason.holds(self) for reason in REASONS if side in reason.sides)

    def first(self, call: Call) -> tuple[Part, Pattern | None]:
        """The message of a call, made by Celery, and the pattern for others; None if its body is not plain JSON."""
        part = self.recorded(call)
        if part.sample.headers.get("compression") or part.sample.content_type != JSON:  # by the task, or its route
            return part, None
        return part, Pattern(self.app, part.sample, self.recorder.raw[2], self.options)

    def recorded(self, call: Call) -> Part:
        """The message of a call, made by Celery, with its queue declared. Raises as apply_async."""
        options = {**self.options, **call.options}
        send: Callable[..., AnyResult] = self.task.apply_async
        result = send(tuple(call.args), dict(call.kwargs), producer=self.recorder, add_to_parent=False, **options)
        made = self.recorder.recorded
        for entity in made.declare or ():
            if hash(entity) not in self.declared:
                self.producer.with_retries(partial(self.producer.maybe_declare, entity))
                self.declared[hash(entity)] = entity
        return part_of(result.id, made)


def part_of(task_id: str, made: Published) -> Part:
    """The message that Celery has made, as its own sample."""
    body = made.body if isinstance(made.body, bytes) else made.body.encode()
    headers, properties = made.headers, made.properties
    sample = Sample(
        task_id,
        made.priority,
        made.content_type,
        made.content_encoding,
        needed(headers),
        properties,
        made.exchange,
        made.routing_key,
        bool(made.mandatory) or must_arrive(made.declare, made.exchange, made.routing_key),
    )
    described: tuple[Any, Any] = (headers.get("argsrepr"), headers.get("kwargsrepr"))
    return Part(sample, task_id, body, *described, headers.get(SENT, 0.0), properties["reply_to"])


def needed(headers: Headers) -> Headers:
    """The headers without those that may be left out, because a broker and a worker parse each header of each message.

    Source: celery 5.7.0, docs/internals/protocol.rst, "optional"; celery/app/task.py, Context.
    """
    return {name: value for name, value in headers.items() if name not in SILENT or value != SILENT[name]}


def path(app: Celery, task: AnyTask) -> tuple[object, ...]:
    """The functions that a call of this task passes."""
    return (
        _function(app.send_task), _function(task.apply_async), Task.apply_async, Celery.send_task, KombuProducer.publish
    )  # fmt: skip


def _function(method: object) -> object:
    return getattr(method, "__func__", None)


def is_own(function: object) -> bool:
    """Whether a function is Celery's, kombu's or the kit's, and not wrapped."""
    return type(function) is FunctionType and function.__code__.co_filename in OWN_FILES


def check_arguments(task: object, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Raises TypeError if the task does not take these, as apply_async does. A task that is a class takes any."""
    if check := getattr(task, "__header__", None):
        check(*args, **kwargs)


def publishing_has_receivers() -> bool:
    """Whether a signal of publishing has a receiver."""
    return any(signal.receivers for signal in SIGNALS)


@dataclass(frozen=True)
class Reason:
    """Why Celery has to make each message. `sides`: for `delay()`, for `send_many`, or for both."""

    what: str
    holds: Callable[[Maker], object]
    sides: tuple[str, ...] = PRODUCER


REASONS = (
    Reason("the part is left out", lambda _: not on("alike"), (DELAY,)),
    Reason("the part is left out", lambda _: not on("many_alike"), (SEND_MANY,)),
    Reason("a receiver of a signal sees each", lambda _: publishing_has_receivers()),
    Reason("an event tells of each", lambda maker: maker.app.conf.task_send_sent_event),
    Reason("a router is a function", lambda maker: not all(isinstance(one, MapRoute) for one in maker.app.amqp.routes)),
    Reason("a function that each passes is a user's", lambda maker: not all(map(is_own, path(maker.app, maker.task)))),
    Reason("each is named by its arguments", lambda maker: _function(maker.task.shadow_name) is not Task.shadow_name),
    Reason("Pydantic writes the arguments", lambda maker: getattr(maker.task, "_dump_pydantic_arguments", False)),
    Reason("the protocol is an earlier one", lambda maker: maker.app.conf.task_protocol != 2),
    Reason("each is signed", lambda maker: maker.app.conf.security_key),
    Reason("the body is compressed", lambda maker: maker.options.get("compression") or maker.app.conf.task_compression),
    Reason(
        "the body is not JSON",
        lambda maker: (maker.options.get("serializer") or maker.task.serializer or maker.app.conf.task_serializer) != "json",
    ),
    Reason("a user's encoder writes JSON", lambda _: not kombus_writer()),
    Reason("each expires at its own time", lambda maker: maker.task.expires, (DELAY,)),
    Reason("the task runs at once", lambda maker: maker.app.conf.task_always_eager, (DELAY,)),
    Reason("it is published without retries", lambda maker: not maker.app.conf.task_publish_retry, (DELAY,)),
    Reason("it may be stored in the spool", lambda maker: getattr(maker.app, "spooled", None), (DELAY,)),
    Reason("the broker publishes no such messages", lambda maker: not getattr(maker.producer, "like", None), (DELAY,)),
)
