"""How ENGINE=fast takes messages from Redis: many in one atomic round trip, which also takes the acknowledgements along.

kombu's transport pops a message by BRPOP and then records it as unacknowledged: a worker that is killed in between loses it.
Here one Lua script removes the acknowledged messages, pops the next ones from all queues and lists of priorities, and records
them in kombu's own format, so that plain and fast workers restore each other's messages. When nothing is there the script has
the server tell this connection of the next push to any of the lists (client-side caching's CLIENT TRACKING, over RESP3), and
nothing is popped before it can be recorded.

How many it takes follows the worker's pace (`celery_kit/engine/prefetch.py`); where the prefetch count is 0, without a limit,
MOST at once. Sources: kombu/transport/redis.py, QoS.append and Channel._brpop_start;
https://redis.io/docs/latest/develop/reference/client-side-caching/.
"""

import logging
from collections import defaultdict, deque
from contextlib import suppress
from threading import get_ident
from time import monotonic
from typing import Any

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import ResponseError

from celery_kit.base.lua import script
from celery_kit.base.messages import DEAD
from celery_kit.brokers.redis import dead
from celery_kit.engine.prefetch import MOST, STALLED, Pace
from celery_kit.engine.quick_json import parse

log = logging.getLogger(__name__)

#: Bytes of messages after which a round trip takes no further one: a large one comes alone.
BYTES = 262_144
#: Seconds that an acknowledgement waits for others while the worker is busy. None does where it is idle.
GATHER = 0.05
#: Acknowledgements that go at once, however long they have waited.
GATHERED = 64
#: And that one round trip takes at most: Lua's unpack() has its limit at some 8,000.
MOST_ACKS = 1_000
#: Seconds after which it looks again without having been told. It is told of all that comes: a safety net.
LOOK_AGAIN = 2.0
#: Seconds between looks, at first and at most, where other workers were quicker: one push tells every idle worker.
YIELD, MOST_YIELD = 0.001, 0.016
#: Seconds that messages are handed over before the loop gets a turn: a task on solo runs while it is handed over.
SLICE = 0.01

FETCH = script(__name__, "fetch")
#: Acknowledgements that the server has not got yet, by its address and their hash: they outlive the connection that a message
#: came by, so that a server which froze, or a connection that died, has no task run again.
ACKS: defaultdict[tuple[str, str], deque[str]] = defaultdict(deque)


class Fetcher:
    """What a channel that consumes with acknowledgements has in place of kombu's BRPOP.

    `turn` belongs to the loop's own thread or greenlet; `acknowledge` may be called in any. `ring()` wakes the loop.
    """

    def __init__(self, channel: Any, ring: Any) -> None:
        self.channel = channel
        self.ring = ring
        self.pace = Pace()
        self.acks = ACKS[channel.connection.client.as_uri(), channel.unacked_key]
        #: Recorded as unacknowledged, and not handed over yet: queue, message.
        self.ready: deque[tuple[str, bytes]] = deque()
        #: Items that the script has not recorded, and the lists that they are from.
        self._odd: dict[bytes, str] = {}
        self._moved_at = 0.0  # when the last of them came or went
        self._loop: int | None = None
        self._socket: Any = None  # the one that is set up
        self._script = b""
        self._sent: list[str] | None = None  # the acknowledgements of the request that is on its way
        self._sent_at = 0.0
        self._queues: list[str] = []
        self._lists: list[str] = []
        self._told = True  # something may be there
        self._asked = 0  # messages, by the request that is on its way
        self._ask_at = -1  # the number of those that are ready at which the next ones are asked for
        self._raced = False  # and that because the server told of a push
        self._looked_at = 0.0
        self._not_before = 0.0
        self._yield = YIELD
        self._acked_at = 0.0  # when the oldest of acks came
        self._rung = False

    # What the loop asks for

    @property
    def connection(self) -> Any:
        return self.channel.client.connection

    @property
    def waits(self) -> bool:
        """A request is on its way."""
        return self._sent is not None

    def acknowledge(self, tag: str) -> None:
        """Remember that a message is done; it is taken along by a round trip that is due within GATHER seconds."""
        if not self.acks:
            self._acked_at = monotonic()
        self.acks.append(tag)
        self.pace.done()
        self._wake()

    def _wake(self) -> None:
        if not self._rung and get_ident() != self._loop:
            self._rung = True
            self.ring()

    def refill(self) -> None:
        """Have the loop hand over what is ready, once half of the prefetch window is free: a wake for each place costs more."""
        if self.ready and not self._rung and 2 * self._free(0) >= self.channel.qos.prefetch_count:
            self._wake()

    def turn(self) -> float:
        """Hand over what is there, send what is due; gives the seconds after which the next turn is due."""
        self._loop, self._rung = get_ident(), False
        self.hand_over()
        if self.ready and self._free(0) > 0:
            return 0.0
        now = monotonic()
        if self.ready and now > self._moved_at + STALLED:
            self._give_back()
        if self._sent is not None:
            if not self._overdue(now):
                return LOOK_AGAIN
            self.read()
            return 0.0
        self._follow(now)
        wait = self._due(now) - now
        if wait > 0:
            return wait
        self._send(now)
        return LOOK_AGAIN

    def read(self) -> bool:
        """Take what the server says; gives whether messages were handed over."""
        connection = self.connection
        while True:
            try:
                # None stands for a push: the server tells of a list that has changed. The script's answer is a list.
                answer = connection.read_response(push_request=True, disable_decoding=True)
            except ResponseError as error:  # such as READONLY, after a failover, or NOSCRIPT: begin anew
                connection.disconnect()
                raise LostConnection(f"Redis refused to give messages: {error}") from error
            except self.channel.connection_errors:
                connection.disconnect()
                raise
            if answer is None:
                self._told = True
            else:
                self._take(answer)
            if not connection.can_read(timeout=0):
                return self.hand_over()

    def hand_over(self) -> bool:
        """Give the consumer what was fetched, as far as its prefetch count allows, for SLICE seconds at most."""
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
                    self.ring()
                break
        return some

    def _follow(self, now: float) -> None:
        if self.channel.take_ahead:
            self.pace.update(now)

    def _ask(self, now: float) -> None:
        """Have the server work on the next batch while this one is handed over: of large messages each is one."""
        self._ask_at = -1
        if self._sent is None:
            self._follow(now)
            if self._due(now) <= now:
                self._send(now)

    def _deliver(self, queue: str, raw: bytes) -> None:
        if self._odd and raw in self._odd:
            self.channel.deliver_raw(raw, queue)  # by kombu's way, which records it
            self.channel.take_back(raw, self._odd.pop(raw))
            return
        try:
            message = parse(raw.decode())
        except ValueError as error:  # the script has read it, Python cannot
            self._set_aside(queue, raw, error)
            return
        tag = self.channel.qos.recorded = message["properties"]["delivery_tag"]
        try:
            self.channel.connection._deliver(message, queue)
        except dead.MalformedError as error:
            dead.put_raw(self.channel, raw, queue, error)
            self.acknowledge(tag)

    # The round trip

    def _free(self, ahead: int) -> int:
        """How many more messages the consumer may hold, of those that were handed over."""
        qos = self.channel.qos
        if "can_consume" in vars(qos):  # worker_disable_prefetch: Celery says only whether it wants another
            return int(qos.can_consume())
        return qos.prefetch_count + ahead - qos.held if qos.prefetch_count else MOST

    def _room(self) -> int:
        if not self.channel.active_queues:
            return 0
        return min(MOST, self._free(self.pace.ahead) - len(self.ready))

    def _due(self, now: float) -> float:
        """When the next round trip is due, in seconds of the monotonic clock."""
        due = now + LOOK_AGAIN
        room = self._room()
        if room > self.pace.ahead // 2:
            due = self._not_before if self._told else self._looked_at + LOOK_AGAIN
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
        keys = [f"{prefix}{key}" for key in (channel.unacked_key, channel.unacked_index_key, DEAD, *self._lists)]
        # Other orders than this one give a queue precedence: they are walked one list after the other.
        width = len(self._queues) if channel.queue_order_strategy == "round_robin" else 1
        acks = self._take_acks()
        self._acked_at = now
        self._sent, self._sent_at = acks, now
        self._asked = max(0, self._room())
        if self._asked:
            self._raced, self._told, self._looked_at = self._told, False, now
        try:
            connection.send_command("EVALSHA", self._script, len(keys), *keys, self._asked, BYTES, max(1, width), *acks)
        except channel.connection_errors:
            connection.disconnect()
            raise

    def _set_up(self, connection: Any) -> None:
        for command in (("CLIENT", "TRACKING", "ON"), ("SCRIPT", "LOAD", FETCH)):
            connection.send_command(*command)
            self._script = connection.read_response()
        self._socket, self._told = connection._sock, True

    def _take(self, answer: list[Any]) -> None:
        self._sent = None
        now = self._moved_at = monotonic()
        for place, message in zip(answer[::2], answer[1::2], strict=True):
            queue = self._queues[(abs(place) - 1) % len(self._queues)]
            if place > 0:
                self.ready.append((queue, message))
            elif self.channel.can_deliver(message, queue):
                self._odd[message] = self._lists[-place - 1]
                self.ready.append((queue, message))
            else:
                log.error("set aside: an item of queue %s that is no message ('make dead' lists it)", queue)
        self._ask_at = len(self.ready) // 4
        if answer:
            self._yield = YIELD
            self.channel._queue_cycle.rotate(queue)
            # The lists are not known to be empty: the server has not been asked to tell.
            self._told = self._told or len(answer) // 2 >= self._asked or sum(map(len, answer[1::2])) >= BYTES
        elif self._asked and self._raced:
            # Told, and another worker was quicker: the more often, the longer this one leaves it to the others.
            self._not_before = now + self._yield
            self._yield = min(MOST_YIELD, 2 * self._yield)

    def _set_aside(self, queue: str, raw: bytes, error: ValueError) -> None:
        """Put what Python cannot read among the dead letters, and acknowledge it by the tag that the script has found."""
        dead.put_raw(self.channel, raw, queue, error)
        if tags := dead.TAG.findall(raw):
            self.acknowledge(tags[-1].decode())

    def _overdue(self, now: float) -> bool:
        """Whether the answer is late, and there after all: a loop that was held up itself has not read it yet.

        A server that is gone without a word never makes the socket readable, and the loop itself knows no timeout.
        """
        if now - self._sent_at <= (self.channel.socket_timeout or 10):
            return False
        # It takes the answer out of the socket, which the loop's poll then never reports: whoever asks has to read.
        if not self.connection.can_read(timeout=0):
            self.connection.disconnect()
            raise LostConnection("Redis has not answered in time")
        return True

    # Its end

    def lost(self) -> None:
        """The connection is gone. The server may or may not have got the acknowledgements: they are sent again."""
        self.acks.extendleft(reversed(self._sent or ()))
        self._sent, self._socket, self._told = None, None, True

    def flush(self) -> None:
        """Send the acknowledgements by themselves. Raises the transport's connection errors, and keeps them then."""
        acks = self._take_acks()
        if not acks:
            return
        try:
            with self.channel.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.zrem(self.channel.unacked_index_key, *acks).hdel(self.channel.unacked_key, *acks).execute()
        except BaseException:
            self.acks.extendleft(reversed(acks))
            raise

    def _take_acks(self) -> list[str]:
        taken: list[str] = []
        with suppress(IndexError):  # other threads add, and may take too
            while len(taken) < MOST_ACKS:
                taken.append(self.acks.popleft())
        return taken

    def hand_back(self) -> None:
        """Give back to the queues what was not handed over, and let go of acknowledgements."""
        if self._sent is not None:
            connection = self.connection
            while self._sent is not None:
                answer = connection.read_response(push_request=True, disable_decoding=True)
                if answer is not None:
                    self._take(answer)
        self._give_back()
        self.flush()

    def _give_back(self) -> None:
        """Put what was fetched and not handed over back where it was taken from, in its order."""
        self.channel.counts_deliveries = False  # nobody has seen them
        while self.ready:  # the last goes first: each becomes the next one of its list
            queue, raw = self.ready.pop()
            if self._odd and raw in self._odd:
                self.channel.take_back(raw, self._odd.pop(raw), to_it=True)
                continue
            try:
                self.channel.qos.restore_by_tag(parse(raw.decode())["properties"]["delivery_tag"])
            except ValueError as error:
                self._set_aside(queue, raw, error)
        self.channel.counts_deliveries = True
