"""Publish many messages, and wait once for all their confirms: a single publish spends most of its time on that wait."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from celery_kit.base.messages import Part, UnconfirmedError, message_of

if TYPE_CHECKING:
    from upstream.amqp import Channel, Message

    from celery_kit.base.types import Connection

#: Seconds after which a message for which there is no queue is published again.
PAUSE = 0.05


def _written(channel: Channel, method: Literal["publish_like", "write_like"], part: Part, seconds: float) -> bool:
    """Whether a channel of ENGINE=fast has written a message, by that method of it (`frames_out.py`)."""
    return bool((write := getattr(channel, method, None)) and write(part, seconds))


def like(channel: Channel, part: Part, seconds: float) -> None:
    """Publish one message, and wait `seconds` at most for its confirm. Raises the errors of a producer's channel
    (`transport.py`).
    """
    if _written(channel, "publish_like", part, seconds):
        return
    sample = part.sample
    channel.basic_publish(
        message_of(channel, part),
        exchange=sample.exchange,
        routing_key=sample.routing_key,
        mandatory=sample.mandatory,
        timeout=seconds,
        confirm_timeout=seconds,
    )


class Bulk:
    """A channel of its own, in confirm mode. Source: https://www.rabbitmq.com/docs/confirms#publisher-confirms"""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.connection, self.timeout = connection, timeout
        self.channel: Channel = connection.channel()
        try:
            self.channel.confirm_select()
        except connection.connection_errors:
            raise  # the caller drops the connection
        except BaseException:
            self.close()
            raise
        self.channel.events["basic_ack"].add(self._acked)
        self.channel.events["basic_nack"].add(self._nacked)
        self.channel.events["basic_return"].add(self._returned)
        self._tag = 0
        self._ids: dict[int, str] = {}  # by delivery tag
        self._waiting: set[str] = set()
        self._refused: set[str] = set()
        self._unrouted: set[str] = set()

    def send(self, parts: Sequence[Part]) -> None:
        """Publish, and wait for all confirms. Raises UnconfirmedError."""
        deadline = time.monotonic() + self.timeout
        while parts:
            self._publish(parts, deadline)
            parts = [part for part in parts if part.id in self._unrouted]
            if parts and time.monotonic() + PAUSE > deadline:
                raise UnconfirmedError("no queue is bound for some of them", self._unrouted | self._refused)
            if parts:
                time.sleep(PAUSE)  # their queue is being bound (`transport.py`)
        if self._refused:
            raise UnconfirmedError("the broker refused some: their queue is full, or cannot write them", self._refused)

    def _publish(self, parts: Sequence[Part], deadline: float) -> None:
        """Publish, and wait for the confirms until `deadline`, by the monotonic clock."""
        self._waiting, self._unrouted = {part.id for part in parts}, set()
        try:
            for part in parts:
                self._tag += 1
                self._ids[self._tag] = part.id
                if not _written(self.channel, "write_like", part, self.timeout):
                    to = (part.sample.exchange, part.sample.routing_key, part.sample.mandatory)
                    self.channel._basic_publish(message_of(self.channel, part), *to, timeout=self.timeout)
            while self._waiting:
                self.connection.drain_events(timeout=max(deadline - time.monotonic(), 0.001))
        except (*self.connection.connection_errors, *self.connection.channel_errors) as error:
            uncertain = self._waiting | self._refused | self._unrouted
            raise UnconfirmedError(str(error) or type(error).__name__, uncertain) from error

    def close(self) -> None:
        """Close the channel."""
        if self.channel.is_open:
            self.channel.close()

    def _acked(self, tag: int, multiple: bool) -> None:
        self._waiting.difference_update(self._answered(tag, multiple))

    def _nacked(self, tag: int, multiple: bool) -> None:
        refused = self._answered(tag, multiple)
        self._refused.update(refused)
        self._waiting.difference_update(refused)

    def _returned(self, _: object, __: str, ___: str, message: Message) -> None:
        self._unrouted.add(message.properties["correlation_id"])

    def _answered(self, tag: int, multiple: bool) -> list[str]:
        """The ids that an answer for `tag` confirms. `multiple`: and all unconfirmed ones before it."""
        tags = [each for each in self._ids if each <= tag] if multiple else [tag]
        return [self._ids.pop(each) for each in tags if each in self._ids]
