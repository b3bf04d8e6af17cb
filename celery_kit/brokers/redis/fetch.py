"""Fetches messages from Redis for ENGINE=fast: many in one atomic round trip, which also sends acknowledgements.

kombu's transport pops a message by BRPOP and records it as unacknowledged afterwards: a worker that is killed in between loses
it. Here a Lua script (`fetch.lua`) removes acknowledged messages, pops the next ones from the lists of all queues and
priorities, and records them in kombu's own format, so that plain and fast workers restore each other's messages. If the lists
are empty, the server notifies this connection of the next push to one of them (CLIENT TRACKING, over RESP3). Each fetch also
moves delayed messages that are due to their lists (`delayed.py`).

The worker's throughput decides how many messages are fetched (`celery_kit/engine/prefetch.py`): MOST at once if the prefetch
count is 0, which means no limit. Sources: kombu/transport/redis.py, QoS.append and Channel._brpop_start;
https://redis.io/docs/latest/develop/reference/client-side-caching/.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError

from celery_kit.base.lua import script
from celery_kit.base.messages import DEAD
from celery_kit.base.sizes import most, too_large
from celery_kit.base.versions import command
from celery_kit.brokers.redis import dead, delayed
from celery_kit.engine.prefetch import MOST, STALLED, Throughput
from celery_kit.engine.quick_json import parse

if TYPE_CHECKING:
    from socket import socket

    from upstream.redis import Connection

    from celery_kit.brokers.redis.leases import Lease
    from celery_kit.brokers.redis.transport import Channel

log = logging.getLogger(__name__)

#: Bytes of messages after which a fetch stops: a large message is fetched alone.
BYTES = 262_144
#: Seconds that an acknowledgement waits for others while the worker is busy: what waits runs again if the worker is killed.
GATHER = 0.002
#: The shortest time in seconds until it looks for delayed messages again.
SOON = 0.05
#: The number of acknowledgements that are sent at once, however short they have waited; and at most in one round trip: Lua's
#: unpack() has its limit at some 8,000.
GATHERED, MOST_ACKS = 64, 1_000
#: Seconds after which it fetches without a notification, in case one is lost.
LOOK_AGAIN = 2.0
#: Seconds between two fetches, at first and at most, while other workers are quicker: a push notifies every idle worker.
YIELD, MOST_YIELD = 0.001, 0.016
#: Seconds that messages are handed over before the loop continues: on solo a task runs while it is handed over.
SLICE = 0.005

FETCH = delayed.MOVE + script(__name__, "fetch")


class Fetcher:
    """Replaces BRPOP for a channel that consumes with acknowledgements.

    Only the loop's thread or greenlet may call `turn`; any may call `acknowledge`. `wake()` wakes the loop.
    """

    def __init__(self, channel: Channel, lease: Lease, wake: Callable[[], None]) -> None:
        self.channel, self.lease = channel, lease
        self.wake = wake
        self.throughput = Throughput()
        self.acks = lease.acks
        #: Messages that are recorded as unacknowledged and not handed over yet, with their queues.
        self.ready: deque[tuple[str, bytes]] = deque()
        #: Items that the script has not recorded, and their lists.
        self._odd: dict[bytes, str] = {}
        self._moved_at = 0.0  # when the last message was fetched or handed over
        self._loop: int | None = None
        self._socket: socket | None = None  # the one that is set up
        self._script = b""
        self._sent: list[str] | None = None  # the acknowledgements of the pending request
        self._sent_at = 0.0
        self._queues: list[str] = []
        self._lists: list[str] = []
        self._notified = True  # a list may hold messages
        self._asked = 0  # how many messages the pending request asks for
        self._ask_at = -1  # the length of `ready` at which more are requested
        self._raced = False  # the pending request follows a notification
        self._looked_at = 0.0
        self._not_before = 0.0
        self._yield = YIELD
        self._acked_at = 0.0  # when the oldest of acks came
        self._signed_at = -math.inf  # when delayed.MOVERS was renewed
        self._due_at = 0.0  # when a delayed message may be due
        self._woken = False

    # Called by the loop

    @property
    def connection(self) -> Connection:
        """The connection that the channel reads from."""
        return self.channel.client.connection

    @property
    def waits(self) -> bool:
        """Whether a request is pending."""
        return self._sent is not None

    def acknowledge(self, tag: str) -> None:
        """Acknowledge a message by a round trip within GATHER seconds."""
        if not self.acks:
            self._acked_at = monotonic()
        self.acks.append(tag)
        self.throughput.done()
        self._wake()

    def _wake(self) -> None:
        if not self._woken and get_ident() != self._loop:
            self._woken = True
            self.wake()

    def refill(self) -> None:
        """Wake the loop once half of the prefetch window is free: waking it for every free slot would cost more."""
        if self.ready and not self._woken and 2 * self._free(0) >= self.channel.qos.prefetch_count:
            self._wake()

    def turn(self) -> float:
        """Hand over messages, and send a request if one is due. Returns the seconds until the next turn."""
        self._loop, self._woken = get_ident(), False
        self.hand_over()
        more, now = bool(self.ready) and self._free(0) > 0, monotonic()
        if self.ready and not more and now > self._moved_at + STALLED:
            self._requeue()
        if self._sent is not None:
            if not self._overdue(now):
                return 0.0 if more else LOOK_AGAIN
            self.read()
            return 0.0
        self._follow(now)
        wait = self._due(now) - now
        if wait <= 0:
            self._send(now)
            wait = LOOK_AGAIN
        return 0.0 if more else wait

    def read(self) -> bool:
        """Read the server's answers. Returns whether messages were handed over."""
        connection = self.connection
        while True:
            try:
                # None is a notification that a list has changed; the script's answer is a list.
                answer = connection.read_response(push_request=True, disable_decoding=True)
            except ResponseError as error:  # such as READONLY, after a failover, or NOSCRIPT: connect again
                connection.disconnect()
                raise LostConnection(f"Redis refused to give messages: {error}") from error
            except self.channel.connection_errors:
                connection.disconnect()
                raise
            if answer is None:
                self._notified = True
            else:
                self._take(answer)
            if not connection.can_read(timeout=0):
                return self.hand_over()

    def hand_over(self) -> bool:
        """Give the consumer fetched messages, as far as its prefetch count allows, for SLICE seconds at most."""
        until, some = 0.0, False
        while self.ready and self._free(0) > 0:
            if len(self.ready) - 1 == self._ask_at:
                self._ask(monotonic())
            queue, raw = self.ready.popleft()
            some = True
            self._deliver(queue, raw)
            now = self._moved_at = monotonic()
            until = until or now + SLICE
            if now > until:
                if self.ready:
                    self.wake()
                break
        return some

    def _follow(self, now: float) -> None:
        if self.channel.take_ahead:
            self.throughput.update(now)

    def _ask(self, now: float) -> None:
        """Request the next batch while this one is handed over: of large messages each is a batch."""
        self._ask_at = -1
        if self._sent is None:
            self._follow(now)
            if self._due(now) <= now:
                self._send(now)

    def _deliver(self, queue: str, raw: bytes) -> None:
        if self._odd and raw in self._odd:
            self.channel.deliver_raw(raw, queue)  # as kombu does, which records it
            self.channel.take_back(raw, self._odd.pop(raw))
            return
        try:
            if why := too_large(raw, dead.ENVELOPE):
                raise dead.MalformedError(why)
            message = parse(raw.decode())
            if delayed.park(self.channel, queue, message, raw):
                return
            self.channel.qos.recorded = message["properties"]["delivery_tag"]
            self.channel.connection._deliver(message, queue)
        except self.channel.connection_errors:
            raise
        except Exception as error:  # the script can read it, and Python, kombu or Celery cannot
            self._dead_letter(queue, raw, error)

    # The round trip

    def _free(self, ahead: int) -> int:
        """How many more messages may be handed to the consumer. `ahead`: those beyond its prefetch count."""
        qos = self.channel.qos
        if "can_consume" in vars(qos):  # worker_disable_prefetch: Celery asks for one at a time
            return int(qos.can_consume())
        return qos.prefetch_count + ahead - qos.held if qos.prefetch_count else MOST

    def _room(self) -> int:
        if not self.channel.active_queues:
            return 0
        return min(MOST, self._free(self.throughput.ahead) - len(self.ready))

    def _due(self, now: float) -> float:
        """When the next request is due, by the monotonic clock."""
        due = now + LOOK_AGAIN
        room = self._room()
        if room > self.throughput.ahead // 2:
            due = self._not_before if self._notified else self._looked_at + LOOK_AGAIN
        if self.channel.active_queues:  # delayed messages are moved by a worker whose window is full, too
            due = min(due, self._due_at)
        if self.acks:
            qos = self.channel.qos
            idle = len(qos._delivered) <= len(qos._dirty) and not self.ready
            due = min(due, now if idle or len(self.acks) >= GATHERED else self._acked_at + GATHER)
        return due

    def _send(self, now: float) -> None:
        channel, connection = self.channel, self.connection
        if connection._sock is not self._socket:
            self._set_up(connection)
        prefix = channel.global_keyprefix
        self._queues = channel._queue_cycle.consume(len(channel.active_queues))
        self._lists = [channel._q_for_pri(queue, step) for step in channel.priority_steps for queue in self._queues]
        keys = [f"{prefix}{key}" for key in (channel.unacked_key, channel.unacked_index_key, DEAD, *delayed.KEYS, *self._lists)]
        # Other orders than this give some queues precedence: their lists are emptied one after the other.
        width = len(self._queues) if channel.queue_order_strategy == "round_robin" else 1
        acks = self._take_acks()
        self._acked_at = now
        self._sent, self._sent_at = acks, now
        self._asked = max(0, self._room())
        if self._asked:
            self._raced, self._notified, self._looked_at = self._notified, False, now
        sign = 0
        if now > self._signed_at + delayed.RENEW:
            sign, self._signed_at = delayed.SIGN, now
        try:
            asked = self._asked, BYTES, max(1, width), channel.owner, sign, dead.ENVELOPE * most()
            connection.send_command("EVALSHA", self._script, len(keys), *keys, *asked, *map(dead.recorded, acks))
        except channel.connection_errors:
            connection.disconnect()
            raise

    def _set_up(self, connection: Any) -> None:
        for words in (("CLIENT", "TRACKING", "ON"), ("SCRIPT", "LOAD", FETCH)):
            connection.send_command(*words)
            self._script = connection.read_response()
        self._socket, self._notified = connection._sock, True

    def _take(self, answer: Sequence[Any]) -> None:
        self._sent = None
        now = self._moved_at = monotonic()
        until, places, messages = answer[0], answer[1].split(), answer[2:]
        self._due_at = now + (LOOK_AGAIN if until < 0 else min(LOOK_AGAIN, max(until / 1_000, SOON)))
        self._notified = self._notified or not until  # more are due
        for place, message in zip(map(int, places), messages, strict=True):
            queue = self._queues[(abs(place) - 1) % len(self._queues)]
            if place > 0:
                self.ready.append((queue, message))
            elif self.channel.can_deliver(message, queue):
                self._odd[message] = self._lists[-place - 1]
                self.ready.append((queue, message))
            else:
                name = command("dead")
                log.error("dead-lettered an item of queue %s that is not a message ('%s' lists it)", queue, name)
        self._ask_at = len(self.ready) // 4
        if messages:
            self._yield = YIELD
            self.channel._queue_cycle.rotate(queue)
            # The lists may not be empty, and then the server does not notify of the next push.
            self._notified = self._notified or len(messages) >= self._asked or sum(map(len, messages)) >= BYTES
        elif self._asked and self._raced:
            # Notified, but another worker was quicker: the more often, the longer this one waits.
            self._not_before = now + self._yield
            self._yield = min(MOST_YIELD, 2 * self._yield)

    def _dead_letter(self, queue: str, raw: bytes, error: Exception) -> None:
        """Dead-letter what cannot be handed over, and acknowledge it by the tag that the script has found."""
        dead.put_raw(self.channel, raw, queue, error)
        qos = self.channel.qos
        for tag in dead.tags_in(raw):
            if tag in qos._delivered:  # it was handed over, and made the consumer fail
                qos.ack(tag)
            else:
                self.acknowledge(tag)

    def _overdue(self, now: float) -> bool:
        """Whether a late answer has arrived after all: the loop itself was delayed. Raises LostConnection if none has.

        The socket of a server that has vanished never becomes readable, and the loop has no timeout.
        """
        if now - self._sent_at <= (self.channel.socket_timeout or 10):
            return False
        # This reads from the socket, so that the loop's poll does not report the answer: the caller has to read it.
        if not self.connection.can_read(timeout=0):
            self.connection.disconnect()
            raise LostConnection("Redis has not answered in time")
        return True

    # The end of the connection, or of the worker

    def lost(self) -> None:
        """The connection is lost. The server may not have received the acknowledgements: they are sent again."""
        self.acks.extendleft(reversed(self._sent or ()))
        self._sent, self._socket, self._notified, self._signed_at = None, None, True, -math.inf

    def flush(self) -> None:
        """Send the acknowledgements at once. Raises the transport's connection errors, and then keeps them."""
        acks = self._take_acks()
        if not acks:
            return
        try:
            self.lease.call(self.channel.plain_client, "ack", *acks)
        except BaseException:
            self.acks.extendleft(reversed(acks))
            raise

    def _take_acks(self) -> list[str]:
        taken: list[str] = []
        with suppress(IndexError):  # other threads append, and may take as well
            while len(taken) < MOST_ACKS:
                taken.append(self.acks.popleft())
        return taken

    def hand_back(self) -> None:
        """Requeue what was not handed over, and send the acknowledgements."""
        if self._sent is not None:
            connection = self.connection
            while self._sent is not None:
                answer = connection.read_response(push_request=True, disable_decoding=True)
                if answer is not None:
                    self._take(answer)
        self._notified = self._notified or bool(self.ready)  # of queues that are still consumed
        self._requeue()
        self.flush()

    def _requeue(self) -> None:
        """Requeue what was fetched and not handed over, in its order."""
        self.channel.counts_deliveries = False  # no task has seen them
        while self.ready:  # the last one first: each becomes the next message of its list
            queue, raw = self.ready.pop()
            if self._odd and raw in self._odd:
                self.channel.take_back(raw, self._odd.pop(raw), to_it=True)
                continue
            try:
                self.channel.give_back([parse(raw.decode())["properties"]["delivery_tag"]])
            except self.channel.connection_errors:
                raise
            except Exception as error:
                self._dead_letter(queue, raw, error)
        self.channel.counts_deliveries = True
