"""Many messages at once, confirmed together. Each is made by Celery, or from the pattern of the first one (`alike.py`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from kombu.utils.uuid import uuid

from celery_kit.base.correlation import SENT
from celery_kit.base.ids import ids
from celery_kit.base.messages import Part, UnconfirmedError, message_of
from celery_kit.brokers import room
from celery_kit.brokers.contract import Bulk
from celery_kit.engine.parts import SEND_MANY, on
from celery_kit.produce.alike import Call, Maker, Pattern, check_arguments

if TYPE_CHECKING:
    from celery import Celery

    from celery_kit.base.types import AnyTask, Channel, Connection, Options
    from celery_kit.produce.publishing import Producer

#: Messages that are confirmed together. A larger number gains nothing, and it is how many are uncertain after a failure.
AT_ONCE = 200


class NotAllSentError(OperationalError):
    """Some messages were not confirmed. It has the ids in the order of sending: those that are `confirmed`, those that are
    `uncertain`, which may have arrived nevertheless, and those that are `unsent`.
    """

    def __init__(self, why: str, confirmed: list[str], uncertain: list[str], unsent: list[str]) -> None:
        super().__init__(
            f"{len(confirmed)} of {len(confirmed) + len(uncertain) + len(unsent)} messages are confirmed, "
            f"{len(uncertain)} may have arrived, {len(unsent)} were not sent: {why}"
        )
        self.confirmed, self.uncertain, self.unsent = confirmed, uncertain, unsent


class OneByOne:
    """Publishes one message after the other, for a broker without a `Bulk` of its own. `timeout`: seconds, for each."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.channel: Channel = connection.channel()
        self.timeout = timeout
        self.errors = (*connection.connection_errors, *connection.channel_errors)

    def send(self, parts: Sequence[Part]) -> None:
        """Publish the messages. Raises UnconfirmedError with the ids from the first that fails."""
        for number, part in enumerate(parts):
            to = (part.sample.exchange, part.sample.routing_key)
            try:
                self.channel.basic_publish(message_of(self.channel, part), *to, timeout=self.timeout)
            except self.errors as error:
                raise UnconfirmedError(str(error) or type(error).__name__, {one.id for one in parts[number:]}) from error

    def close(self) -> None:
        """Close the channel."""
        self.channel.close()


class Sender(Maker):
    """Sends calls of one task over one producer."""

    def __init__(self, app: Celery, task: AnyTask, options: Options, producer: Producer) -> None:
        super().__init__(app, task, options, producer, SEND_MANY)
        self.bulk_class: type[Bulk] = getattr(room(app.conf.broker_write_url), "bulk", None) or OneByOne
        self.ids = ids() if on("quick_ids") else iter(uuid, "")
        self._pattern: Pattern | None = None

    def send(self, calls: Iterable[Call]) -> list[str]:
        """Send the calls, and return their tasks' ids in the same order.

        Raises NotAllSentError, or what Celery raises before anything is sent.
        """
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
            self.producer.maybe_declare(entity)  # another broker may not have it
        return self.bulk_class(self.producer.connection, self.producer.broker_timeout)

    @contextmanager
    def _started(self) -> Iterator[Bulk]:
        """The broker's `Bulk`. It is closed at the end, unless a message was not confirmed: the connection is dropped then."""
        bulk, connection, lost = self.producer.with_retries(self._start), self.producer.connection, False
        try:
            yield bulk
        except UnconfirmedError:
            lost = True
            raise
        finally:
            if not lost:
                with suppress(*connection.connection_errors, *connection.channel_errors):  # everything is confirmed
                    bulk.close()

    def _publish(self, rest: list[Part]) -> None:
        """Publish them in batches. If a broker is lost, the next one gets, under the same ids, what is not confirmed."""
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
                    producer.reconnect(switch=True)
                    uncertain = set(error.ids)
                    now, brokers = rest[sent : sent + AT_ONCE], brokers - 1
                    confirmed += [part.id for part in rest[:sent]] + [part.id for part in now if part.id not in uncertain]
                    rest = [part for part in now if part.id in uncertain] + rest[sent + AT_ONCE :]
                    if brokers and error.__cause__:  # the connection failed; without a cause the broker has refused
                        continue
                unsent = [part.id for part in rest if part.id not in uncertain]
                raise NotAllSentError(
                    str(error), confirmed, [part.id for part in rest if part.id in uncertain], unsent
                ) from error

    def part(self, call: Call) -> Part:
        """The message of a call. Raises as apply_async."""
        if call.options or self.options.get("task_id") or self.celery_makes_each:
            return self.recorded(call)
        if self.task.typing:
            check_arguments(self.task, call.args, call.kwargs)
        if not self._pattern:
            first, self._pattern = self.first(call)
            self.celery_makes_each = self._pattern is None
            return first
        sample = self._pattern.sample
        return self._pattern.part(
            next(self.ids), tuple(call.args), call.kwargs, sample.headers.get(SENT, 0.0), sample.properties["reply_to"]
        )


def calls(items: Iterable[Iterable[object] | Call]) -> Iterator[Call]:
    """Each item as a :class:`Call`. An item is one, or the positional arguments of one."""
    return (item if isinstance(item, Call) else Call(tuple(item)) for item in items)
