"""How many messages RabbitMQ sends a worker ahead: they follow the worker's pace (`celery_kit/engine/prefetch.py`).

A quorum queue's prefetch count is static: it holds for the consumers that come after it. So a worker that has become quicker
cancels its consumer and consumes anew, with a larger count, and one that has become slower does the reverse. Nobody waits for
an answer on the way. What comes beyond Celery's own prefetch count is kept here and not in the pool, and is handed over as
tasks end; where none ends any more it goes back to its queue.

RabbitMQ counts that as a delivery, and a message that came too often is set aside. Hence `take_ahead` (bool) among the
transport's options: not where MAX_DELIVERIES is lower than the broker's own limit. It counts as well, and sends again later,
what it was about to send to a consumer that is cancelled: so a consumer is replaced while it holds all that it may.
Sources: https://www.rabbitmq.com/docs/consumer-prefetch; amqp 5.4.2, channel.py, basic_consume, basic_qos, basic_cancel.
"""

from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from time import monotonic
from typing import Any

from amqp import spec

from celery_kit.engine.commit import commit
from celery_kit.engine.prefetch import STALLED, Pace

#: Bytes that may be sent ahead, by the size of the last messages.
BYTES = 4_000_000
#: The window grows when the pace asks for so many times what it has, and shrinks when it has so many times what that asks for.
QUICKER, SLOWER = 2, 4
#: Seconds that a pace has to be slower: for the broker a consumer is a thing to be written down.
PATIENCE = 1.0
#: After this long, in seconds, the loop looks at its other duties before it handles more messages.
TURN = 0.01

_numbers = count(1)


@dataclass
class Consumer:
    """`tag`: as kombu knows it; `now`: as the broker does. `prefetch`: Celery's count, in messages; `ahead`: beyond it.

    `out`: what `now` was sent and the broker has no word of.
    """

    queue: str
    tag: str
    now: str
    prefetch: int
    no_local: bool
    arguments: Any
    ahead: int = 0
    out: int = 0


class Window:
    """Of a channel. Where it has no loop nothing is taken ahead, and nothing kept.

    It belongs to the loop's thread, but for `settled` and `answering`; `lock`: the channel's, of what both touch.
    """

    def __init__(self, channel: Any, lock: AbstractContextManager[Any]) -> None:
        self.channel = channel
        self._lock = lock
        self.pace = Pace()
        #: Celery's last one, for each consumer: None where it is for the channel as a whole.
        self.prefetch: int | None = None
        #: Queues that stay when nobody consumes from them for a moment.
        self.lasting: set[str] = set()
        self.forget()

    def forget(self) -> None:
        """The broker has forgotten this channel's consumers, and what it has delivered."""
        self.ready: deque[tuple[Any, ...]] = deque()  # delivered, and not handed over: kombu's tag, delivery tag, the rest
        self._consumers: dict[str, Consumer] = {}  # by kombu's tag
        self._open: set[int] = set()  # tags of deliveries that are neither acknowledged nor rejected
        self._sent_to: dict[int, tuple[Consumer, str]] = {}  # by delivery tag
        self._back: set[str] = set()  # what still comes for these tags of the broker's goes back
        self._wanted = self._size = 0
        self._moved_at = self._quick_at = 0.0

    @property
    def ahead(self) -> int:
        """Messages that may be held beyond Celery's own prefetch count."""
        return sum(consumer.ahead for consumer in self._consumers.values())

    # What kombu asks for

    def add(self, queue: str, tag: str, no_local: bool, arguments: Any) -> None:
        """kombu has begun to consume, with acknowledgements."""
        if self.prefetch and queue in self.lasting:
            self._consumers[tag] = Consumer(queue, tag, tag, self.prefetch, no_local, arguments)
            self._back.discard(tag)

    def remove(self, tag: str) -> str:
        """kombu is about to cancel a consumer; gives the tag that the broker knows it by. What it was not given goes back."""
        consumer = self._consumers.pop(tag, None)
        if consumer is None:
            return tag
        self._back.add(consumer.now)
        mine = [delivery for delivery in self.ready if delivery[0] == tag]
        self.ready = deque(delivery for delivery in self.ready if delivery[0] != tag)
        self._reject(mine)
        return consumer.now

    # Deliveries

    def take(self, tag: str, delivery_tag: int, *rest: Any) -> None:
        """Hand a delivery over, or keep it."""
        if tag in self._back:
            self.channel.basic_reject(delivery_tag, True)
            return
        consumer = self._consumers.get(tag) or self._consumers.get(tag.rpartition(".")[0])
        if consumer is None:
            self.channel.hand_over(tag, delivery_tag, *rest)
            return
        with self._lock:
            self._open.add(delivery_tag)
            if tag == consumer.now:
                consumer.out += 1
                self._sent_to[delivery_tag] = consumer, tag
        delivery = (consumer.tag, delivery_tag, *rest)
        self._size = max(len(rest[-1].body or b""), self._size * 7 // 8)
        if self.ready or (self.channel.connection.loop and self._free() < 0):  # it is among those that are held
            self.ready.append(delivery)
        else:
            self._hand_over(delivery)

    def hand_over(self) -> None:
        """Hand over what is kept, as far as the prefetch count allows, for a TURN."""
        until = 0.0
        while self.ready and self._free() > 0:
            self._hand_over(self.ready.popleft())
            until = until or self._moved_at + TURN
            if self._moved_at > until:
                return

    def _hand_over(self, delivery: tuple[Any, ...]) -> None:
        begun = monotonic()
        self.channel.hand_over(*delivery)
        self._moved_at = monotonic()
        if self._moved_at > begun + STALLED:  # it ran, on solo, and what came meanwhile has waited for it
            self._give_back()

    @property
    def _places(self) -> int:
        return sum(consumer.prefetch for consumer in list(self._consumers.values()))

    def _free(self) -> int:
        """How many more messages the consumers may be handed."""
        return self._places + commit.done + len(self.ready) - len(self._open)

    def is_half_free(self) -> bool:
        """Half of the places for messages are free, and something is kept. From any thread."""
        return bool(self.ready) and 2 * self._free() >= self._places

    def _give_back(self) -> None:
        """What was sent ahead goes back to its queue; not what Celery itself would hold."""
        ahead = [consumer for consumer in self._consumers.values() if consumer.ahead]
        if not ahead and len(self.ready) <= self._places:
            return
        kept, self.ready = self.ready, deque()
        self._back = {consumer.now for consumer in ahead}
        self._consume(ahead, 0)
        self._reject(kept)

    def _reject(self, deliveries: Iterable[tuple[Any, ...]]) -> None:
        for _, delivery_tag, *_ in deliveries:
            self.channel.basic_reject(delivery_tag, True)

    # How far ahead

    def turn(self, now: float) -> bool:
        """The loop is about to wait. True where there is more to hand over at once."""
        self.pace.update(now)
        if self.channel.connection.take_ahead:
            self._follow(now)
        if not self.ready or self._free() > 0:
            return bool(self.ready)
        if now > self._moved_at + STALLED:
            self._give_back()
        return False

    def _follow(self, now: float) -> None:
        self._wanted = min(self.pace.ahead, BYTES // max(1, self._size))
        ahead = [consumer for consumer in self._consumers.values() if consumer.ahead]
        if any(self._wanted * SLOWER >= consumer.ahead for consumer in ahead):
            self._quick_at = now
        elif now > self._quick_at + PATIENCE:
            self._consume(ahead, 0)

    def settled(self, delivery_tag: int) -> None:
        """This one is acknowledged or rejected. From any thread, under the channel's lock."""
        self._open.discard(delivery_tag)

    def answering(self, tags: Iterable[int]) -> None:
        """The broker is about to have word of these deliveries. From any thread, under the channel's lock."""
        wanted = self._wanted
        self._consume(
            [
                consumer
                for consumer in list(self._consumers.values())
                if consumer.prefetch <= wanted > QUICKER * consumer.ahead and consumer.out == consumer.prefetch + consumer.ahead
            ],
            wanted,
        )
        for tag in tags:
            consumer, known_as = self._sent_to.pop(tag, (None, ""))
            if consumer and consumer.now == known_as:
                consumer.out -= 1

    def _consume(self, consumers: list[Consumer], ahead: int) -> None:
        """Consume anew, with so many messages beyond the prefetch count."""
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
