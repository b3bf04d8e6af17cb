"""Many messages at once: each made by Celery, or like one that Celery made, and confirmed together.

The first message of a call goes all the way through Celery - its routes, its options, its headers -, up to where it would be
published. The others differ from it in their ids and arguments only and are made from it, unless something would see each of
them on its way: a signal's receiver, a router that is a function, an `apply_async` of the task's own. Then each goes that way.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FunctionType
from typing import Any, NamedTuple

from celery import Celery, Task, signals
from celery.app.routes import MapRoute
from celery.utils.saferepr import saferepr
from kombu import Producer as KombuProducer
from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from celery_kit.base.correlation import SENT
from celery_kit.base.ids import ids
from celery_kit.base.messages import Part, Sample, UnconfirmedError, message_of
from celery_kit.brokers import room
from celery_kit.brokers.contract import Bulk
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import JSON, kombus_writer, text_of
from celery_kit.produce.publishing import brief, must_arrive

#: Messages that are confirmed together: more gain nothing, and what a failure leaves uncertain is so many at most.
AT_ONCE = 200
#: Headers of a task's message, each with the value that a worker assumes where it is not there: with that it says nothing.
SILENT: dict[str, Any] = {
    **dict.fromkeys(("shadow", "eta", "expires", "group", "group_index", "parent_id", "stamped_headers")),
    "retries": 0,
    "replaced_task_nesting": 0,
}
SEEN_BY = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)

#: Where the functions stand that a call goes through on its way: what Sentry and others put in their place is elsewhere.
OWN_FILES = {sys.modules[one.__module__].__file__ for one in (Task, Celery, KombuProducer)}


class Call(NamedTuple):
    """A task's arguments, and options of apply_async for this message alone: countdown, eta, priority, headers, task_id …"""

    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}


class NotAllSentError(OperationalError):
    """Some messages were not confirmed. Ids, in the order of sending: `confirmed`; `uncertain`, which may have arrived all the
    same; `unsent`.
    """

    def __init__(self, why: str, confirmed: list[str], uncertain: list[str], unsent: list[str]) -> None:
        super().__init__(
            f"{len(confirmed)} of {len(confirmed) + len(uncertain) + len(unsent)} messages are confirmed, "
            f"{len(uncertain)} may have arrived, {len(unsent)} were not sent: {why}"
        )
        self.confirmed, self.uncertain, self.unsent = confirmed, uncertain, unsent


class Model(NamedTuple):
    """What a task's messages have in common: a sample, what follows the arguments in its body, and apply_async's options."""

    app: Any
    sample: Sample
    embed: Any
    options: Mapping[str, Any]

    def part(self, task_id: str, args: Sequence[Any], kwargs: Mapping[str, Any], sent: float, reply_to: str) -> Part:
        """A message like it. Raises what JSON raises for arguments that it does not know."""
        body = text_of([args, kwargs, self.embed]).encode()
        described = self._repr(args, "argsrepr"), self._repr(kwargs, "kwargsrepr")
        return Part(self.sample, task_id, body, *described, sent, reply_to)

    def _repr(self, value: Any, name: str) -> str:
        """What Celery's header says."""
        if name in self.options:
            return str(self.options[name])
        return brief(value) or saferepr(
            value, getattr(self.app.amqp, f"{name}_maxsize"), maxlevels=self.app.conf.task_repr_maxlevels
        )


class _Recorder(KombuProducer):
    """Takes what Celery would publish, at the last step before the channel."""

    records: Any = True
    taken: Any = None
    raw: Any = None

    def __init__(self, producer: Any) -> None:
        self.patiently = producer.patiently
        super().__init__(producer.connection, auto_declare=False)

    def publish(self, body: Any, **options: Any) -> Any:  # type: ignore[override]  # kombu spells the options out
        self.raw = body
        return super().publish(body, **{**options, "retry": False})

    def _publish(self: Any, *message: Any, **_: Any) -> None:
        self.taken = message


class OneByOne:
    """Many messages as kombu has it, for a broker that has no other way."""

    def __init__(self, connection: Any, patience: float) -> None:
        self.channel, self.patience = connection.channel(), patience
        self.errors = (*connection.connection_errors, *connection.channel_errors)

    def send(self, parts: Sequence[Part]) -> None:
        for number, part in enumerate(parts):
            to = (part.sample.exchange, part.sample.routing_key)
            try:
                self.channel.basic_publish(message_of(self.channel, part), *to, timeout=self.patience)
            except self.errors as error:
                raise UnconfirmedError(str(error) or type(error).__name__, {one.id for one in parts[number:]}) from error

    def close(self) -> None:
        self.channel.close()


class Sender:
    """Sends calls of one task over one producer."""

    def __init__(self, app: Any, task: Any, options: dict[str, Any], producer: Any) -> None:
        self.app, self.task, self.options, self.producer = app, task, options, producer
        self.recorder = _Recorder(producer)
        self.declared: dict[int, Any] = {}
        self.bulk_class: type[Bulk] = getattr(room(app.conf.broker_write_url), "bulk", None) or OneByOne
        self.ids = ids() if on("quick_ids") else iter(uuid, "")
        self.each_is_seen = self._each_is_seen()
        self._model: Model | None = None

    def send(self, calls: Iterable[Call]) -> list[str]:
        """Give the ids, in the order of the calls. Raises NotAllSentError, or what Celery raises before anything is sent."""
        parts = [self.part(call) for call in calls]
        if not parts:
            return []
        sending = [part.id for part in parts]
        self._publish(parts)
        if parent := self.app.current_worker_task:
            for task_id in sending:
                parent.add_trail(self.app.AsyncResult(task_id))
        return sending

    def _start(self) -> Bulk:
        for entity in self.declared.values():
            self.producer.maybe_declare(entity)  # another broker has not got it yet
        return self.bulk_class(self.producer.connection, self.producer.share)

    @contextmanager
    def _started(self) -> Iterator[Bulk]:
        """What sends, closed whatever ends it; where it could not confirm, its connection is let go of instead."""
        bulk, connection, lost = self.producer.patiently(self._start), self.producer.connection, False
        try:
            yield bulk
        except UnconfirmedError:
            lost = True
            raise
        finally:
            if not lost:
                with suppress(*connection.connection_errors, *connection.channel_errors):  # all that was sent is confirmed
                    bulk.close()

    def _publish(self, rest: list[Part]) -> None:
        """Publish them, a batch at a time. Of several brokers the next one gets, under the same ids, what a lost one has not
        confirmed.
        """
        producer, confirmed, uncertain = self.producer, list[str](), set[str]()
        brokers = max(1, len(producer.connection.alt))
        while rest:
            sent = 0
            try:
                with self._started() as bulk:
                    while batch := rest[sent : sent + AT_ONCE]:
                        bulk.send(batch)
                        sent += len(batch)
                return
            except OperationalError as error:
                if not sent and not uncertain and not isinstance(error, UnconfirmedError):
                    raise  # nothing was sent
                if isinstance(error, UnconfirmedError):
                    connection = producer.connection
                    connection.collect()
                    connection.maybe_switch_next()
                    producer.revive(connection)
                    uncertain = set(error.ids)
                    now, brokers = rest[sent : sent + AT_ONCE], brokers - 1
                    confirmed += [part.id for part in rest[:sent]] + [part.id for part in now if part.id not in uncertain]
                    rest = [part for part in now if part.id in uncertain] + rest[sent + AT_ONCE :]
                    if brokers and error.__cause__:  # the connection's error; else it was this broker's answer
                        continue
                unsent = [part.id for part in rest if part.id not in uncertain]
                raise NotAllSentError(
                    str(error), confirmed, [part.id for part in rest if part.id in uncertain], unsent
                ) from error

    def part(self, call: Call) -> Part:
        if call.options or self.options.get("task_id") or self.each_is_seen:
            return self.recorded(call)
        if self.task.typing:
            check_arguments(self.task, call.args, call.kwargs)
        if not self._model:
            first = self.recorded(call)
            self._model = self.model(first)
            self.each_is_seen = self._model is None
            return first
        sample = self._model.sample
        return self._model.part(
            next(self.ids), tuple(call.args), call.kwargs, sample.headers.get(SENT, 0.0), sample.properties["reply_to"]
        )

    def model(self, part: Part) -> Model | None:
        """What others like the message that was last recorded are made from; None where its body is more than JSON."""
        if part.sample.headers.get("compression") or part.sample.content_type != JSON:  # as the task, or its route, asks
            return None
        return Model(self.app, part.sample, self.recorder.raw[2], self.options)

    def _each_is_seen(self) -> bool:
        """Something on a message's way has to see each of them, or its body is more than JSON."""
        conf = self.app.conf
        return bool(
            not on("many_alike")
            or publishing_is_seen()
            or not kombus_writer()
            or not all(isinstance(route, MapRoute) for route in self.app.amqp.routes)
            or not all(map(is_celerys, way(self.task)))
            or conf.task_send_sent_event
            or conf.task_protocol != 2
            or self.options.get("compression")
            or conf.task_compression
            or (self.options.get("serializer") or self.task.serializer or conf.task_serializer) != "json"
        )

    def recorded(self, call: Call) -> Part:
        """A message all the way from Celery."""
        options = {**self.options, **call.options}
        result = self.task.apply_async(
            tuple(call.args), dict(call.kwargs), producer=self.recorder, add_to_parent=False, **options
        )
        body, priority, content_type, content_encoding, headers, properties, routing_key = self.recorder.taken[:7]
        mandatory, _, exchange, declare = self.recorder.taken[7:11]
        for entity in declare or ():
            if hash(entity) not in self.declared:
                self.producer.patiently(lambda entity=entity: self.producer.maybe_declare(entity))
                self.declared[hash(entity)] = entity
        body = body if isinstance(body, bytes) else body.encode()
        about = (
            content_type,
            content_encoding,
            told(headers),
            properties,
            exchange,
            routing_key,
            bool(mandatory) or must_arrive(declare, exchange, routing_key),
        )
        sample = Sample(result.id, body, priority, *about)
        described = headers.get("argsrepr"), headers.get("kwargsrepr")
        return Part(sample, result.id, body, *described, headers.get(SENT, 0.0), properties["reply_to"])


def told(headers: Mapping[str, Any]) -> dict[str, Any]:
    """The headers without those that say nothing: a broker and a worker go through each, for each message.

    Source: celery 5.7.0, docs/internals/protocol.rst, "optional"; celery/app/task.py, Context.
    """
    return {name: value for name, value in headers.items() if name not in SILENT or value != SILENT[name]}


def way(task: Any) -> tuple[Any, ...]:
    """The functions that a call of this task goes through."""
    return getattr(task.apply_async, "__func__", None), Task.apply_async, Celery.send_task, KombuProducer.publish


def is_celerys(function: Any) -> bool:
    """It is Celery's or kombu's own, or the kit's for it, and nobody has wrapped it."""
    return type(function) is FunctionType and function.__code__.co_filename in OWN_FILES


def check_arguments(task: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises TypeError where the task does not take these, as apply_async does. A task that is a class takes any."""
    if check := getattr(task, "__header__", None):
        check(*args, **kwargs)


def publishing_is_seen() -> bool:
    """Somebody listens to the signals of a publish."""
    return any(signal.receivers for signal in SEEN_BY)


def calls(items: Iterable[Any]) -> Iterator[Call]:
    """Each item as a :class:`Call`; an item may be one, or the arguments alone."""
    return (item if isinstance(item, Call) else Call(tuple(item)) for item in items)
