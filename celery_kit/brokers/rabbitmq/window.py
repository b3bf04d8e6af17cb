"""How many messages RabbitMQ sends a worker: as many as its throughput asks for (`celery_kit/engine/prefetch.py`).

The prefetch count of a quorum queue is static: it applies to later consumers only. So a worker whose throughput rises cancels
its consumer and consumes again with a larger count, and with a smaller one when it falls. It waits for no answer in between.
Messages beyond Celery's own prefetch count are buffered here, not in the pool, and handed over as tasks end. If no task ends
any more, they are requeued.

RabbitMQ counts that as a delivery, and dead-letters a message after too many of them. Hence the transport option `take_ahead`
(bool): false if MAX_DELIVERIES is lower than the broker's own limit. It also counts, and later sends again, messages that it
was about to send to a consumer that is cancelled: so a consumer is replaced only while it holds its full prefetch count.
Sources: https://www.rabbitmq.com/docs/consumer-prefetch; amqp 5.4.2, channel.py, basic_consume, basic_qos, basic_cancel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

from amqp import spec

from celery_kit.engine.commit import commit
from celery_kit.engine.prefetch import STALLED, Throughput

if TYPE_CHECKING:
    from upstream.amqp import Message

    from celery_kit.brokers.rabbitmq.fast_connection import Channel

    #: Of a delivery: whether it is a redelivery, its exchange, its routing key and its message.
    Rest: TypeAlias = tuple[bool, str, str, Message]
    #: kombu's consumer tag, the delivery tag, and the rest.
    Delivery: TypeAlias = tuple[str, int, bool, str, str, Message]
    #: The consumer that a delivery was sent to, and its tag at the time.
    Sent: TypeAlias = tuple["Consumer", str]

#: The largest window in bytes, by the size of the last messages.
BYTES = 4_000_000
#: The window grows when the throughput asks for so many times its size, and shrinks when its size is so many times that.
QUICKER, SLOWER = 2, 4
#: Seconds that the throughput has to stay low: the broker writes each consumer to disk.
PATIENCE = 1.0
#: Seconds that messages are handled before the loop does its other work.
TURN = 0.01

_numbers = count(1)


@dataclass
class Consumer:
    """`tag`: kombu's consumer tag; `now`: the broker's. `prefetch`: Celery's count, in messages; `ahead`: those beyond it.

    `held`: messages that are neither acknowledged nor rejected; `out`: those that `now` was sent, until the broker is notified.
    """

    queue: str
    tag: str
    now: str
    prefetch: int
    no_local: bool
    arguments: object
    ahead: int = 0
    held: int = 0
    out: int = 0


class Window:
    """The window of a channel. Without a loop nothing is prefetched beyond Celery's count, and nothing buffered.

    Only the loop's thread may use it, except for `settled` and `answering`. `lock`: the channel's, for what both change.
    """

    def __init__(self, channel: Channel, lock: AbstractContextManager[object]) -> None:
        self.channel = channel
        self._lock = lock
        self.throughput = Throughput()
        #: Celery's last prefetch count, for each consumer; None if it is for the channel as a whole.
        self.prefetch: int | None = None
        #: Queues that are not deleted while they have no consumer.
        self.lasting: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """The broker has closed the channel: its consumers and deliveries are gone."""
        self.ready: deque[Delivery] = deque()  # delivered, and not handed over
        self._consumers: dict[str, Consumer] = {}  # by kombu's tag
        self._back: set[str] = set()  # the broker's tags whose deliveries are requeued
        self._wanted = self._size = 0
        self._moved_at = self._quick_at = 0.0

    @property
    def ahead(self) -> int:
        """How many messages may be held beyond Celery's own prefetch count."""
        return sum(consumer.ahead for consumer in self._consumers.values())

    # Called by kombu

    def add(self, queue: str, tag: str, no_local: bool, arguments: object) -> None:
        """kombu has started to consume with acknowledgements."""
        if self.prefetch and queue in self.lasting:
            self._consumers[tag] = Consumer(queue, tag, tag, self.prefetch, no_local, arguments)
            self._back.discard(tag)

    def remove(self, tag: str) -> str:
        """kombu is about to cancel a consumer: requeue its buffered messages. Returns the tag that the broker knows it by."""
        consumer = self._consumers.pop(tag, None)
        if consumer is None:
            return tag
        self._back.add(consumer.now)
        mine = [delivery for delivery in self.ready if delivery[0] == tag]
        self.ready = deque(delivery for delivery in self.ready if delivery[0] != tag)
        self._reject(mine)
        return consumer.now

    # Deliveries

    def take(self, tag: str, delivery_tag: int, *rest: *Rest) -> None:
        """Hand a delivery over, or buffer it."""
        if tag in self._back:
            self.channel.basic_reject(delivery_tag, True)
            return
        consumer = self._consumers.get(tag) or self._consumers.get(tag.rpartition(".")[0])
        if consumer is None:
            self.channel.hand_over(tag, delivery_tag, *rest)
            return
        with self._lock:
            self.channel.unacked[delivery_tag] = consumer, tag
            consumer.held += 1
            consumer.out += tag == consumer.now
        delivery = (consumer.tag, delivery_tag, *rest)
        self._size = max(len(rest[-1].body or b""), self._size * 7 // 8)
        if self.ready or (self.channel.connection.loop and self._free() < 0):  # this delivery counts already
            self.ready.append(delivery)
        else:
            self._hand_over(delivery)

    def hand_over(self) -> None:
        """Hand buffered messages over, as far as the prefetch count allows, for a TURN at most."""
        until = 0.0
        while self.ready and self._free() > 0:
            self._hand_over(self.ready.popleft())
            until = until or self._moved_at + TURN
            if self._moved_at > until:
                return

    def _hand_over(self, delivery: Delivery) -> None:
        begun = monotonic()
        self.channel.hand_over(*delivery)
        self._moved_at = monotonic()
        if self._moved_at > begun + STALLED:  # on solo it ran, and later messages have waited for it
            self._requeue()

    @property
    def _places(self) -> int:
        return sum(consumer.prefetch for consumer in list(self._consumers.values()))

    def _free(self) -> int:
        """How many more messages the consumers may be given."""
        free = sum(consumer.prefetch - consumer.held for consumer in list(self._consumers.values()))
        return free + commit.done + len(self.ready)

    def is_half_free(self) -> bool:
        """Whether half of the slots for messages are free, and some are buffered. From any thread."""
        return bool(self.ready) and 2 * self._free() >= self._places

    def _requeue(self) -> None:
        """Requeue the buffered messages, but for those that Celery itself would hold."""
        ahead = [consumer for consumer in self._consumers.values() if consumer.ahead]
        if not ahead and len(self.ready) <= self._places:
            return
        buffered, self.ready = self.ready, deque()
        self._back = {consumer.now for consumer in ahead}
        self._consume(ahead, 0)
        self._reject(buffered)

    def _reject(self, deliveries: Iterable[Delivery]) -> None:
        for _, delivery_tag, *_ in deliveries:
            self.channel.basic_reject(delivery_tag, True)

    # How far ahead

    def turn(self, now: float) -> bool:
        """Called when the loop is about to wait. Returns whether there is more to hand over at once."""
        self.throughput.update(now)
        if self.channel.connection.take_ahead:
            self._follow(now)
        if not self.ready or self._free() > 0:
            return bool(self.ready)
        if now > self._moved_at + STALLED:
            self._requeue()
        return False

    def _follow(self, now: float) -> None:
        self._wanted = min(self.throughput.ahead, BYTES // max(1, self._size))
        ahead = [consumer for consumer in self._consumers.values() if consumer.ahead]
        if any(self._wanted * SLOWER >= consumer.ahead for consumer in ahead):
            self._quick_at = now
        elif now > self._quick_at + PATIENCE:
            self._consume(ahead, 0)

    def settled(self, sent: Sent | None) -> Sent | None:
        """Called when a delivery is acknowledged or rejected. From any thread, under the channel's lock."""
        if sent:
            sent[0].held -= 1
        return sent

    def answering(self, deliveries: Iterable[Sent | None]) -> None:
        """Called just before the broker is notified of these. From any thread, under the channel's lock."""
        wanted = self._wanted
        self._consume(
            [
                consumer
                for consumer in list(self._consumers.values())
                if consumer.prefetch <= wanted > QUICKER * consumer.ahead and consumer.out == consumer.prefetch + consumer.ahead
            ],
            wanted,
        )
        for consumer, tag in filter(None, deliveries):
            consumer.out -= tag == consumer.now

    def _consume(self, consumers: list[Consumer], ahead: int) -> None:
        """Replace these consumers by ones with `ahead` messages beyond the prefetch count."""
        send = self.channel.send_method
        with self._lock:
            for consumer in consumers:
                send(spec.Basic.Cancel, "sb", (consumer.now, True))
                consumer.now, consumer.ahead, consumer.out = f"{consumer.tag}.{next(_numbers)}", ahead, 0
                send(spec.Basic.Qos, "lBb", (0, min(consumer.prefetch + ahead, 65_535), False))
                arguments = (0, consumer.queue, consumer.now, consumer.no_local, False, False, True, consumer.arguments)
                send(spec.Basic.Consume, "BssbbbbF", arguments)
            if consumers:
                send(spec.Basic.Qos, "lBb", (0, self.prefetch, False))
