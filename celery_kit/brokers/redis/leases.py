"""Leases on Redis: a living worker keeps its messages, however long its tasks run, and a dead one gives them back in seconds.

RabbitMQ requeues a worker's messages as soon as its connection ends. kombu's Redis transport restores a message that has been
unacknowledged for the visibility timeout, whether its worker is dead or its task is long. Here a worker has a lease of some
seconds, by the server's clock, and renews it three times as often. What it fetches is recorded with the lease's owner in the
same step (`fetch.lua`). Any worker requeues what the owner of an ended lease held (`leases.lua`), and counts the delivery.

A thread renews the lease, so that a long task or a busy loop cannot stop it. It has a connection of its own. On eventlet and
gevent too it is a thread of the operating system. One call of C code that holds the interpreter's lock longer than the lease
blocks it: such a task needs a longer WORKER_LEASE.

A worker that was frozen, or could not reach the server, asks whether its lease still lasts before it begins a task. If others
got its messages meanwhile, it begins none of them, and connects again with a new lease; its late acknowledgements have no
effect. After a lost connection, running tasks keep their messages: they pass to the next lease. All others are requeued.

The records of unacknowledged messages are kombu's. Their times are renewed with the lease, so that plain Celery's workers
do not restore them. They restore what nobody holds after the visibility timeout, as ever.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import sys
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from hashlib import sha1
from typing import TYPE_CHECKING, cast
from uuid import uuid4
from weakref import WeakSet

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoScriptError, ResponseError

from celery_kit.base import processes
from celery_kit.base.lua import cannot_write, script
from celery_kit.base.processes import clock
from celery_kit.brokers.redis import broker, dead, renewal

if TYPE_CHECKING:
    from redis import ConnectionPool as RedisPool
    from upstream import kombu_virtual as virtual
    from upstream.redis import Client, ConnectionPool, Pipeline

else:
    from kombu.transport import virtual

log = logging.getLogger(__name__)

#: Seconds of a lease, by default (WORKER_LEASE).
SECONDS = 15
#: How many messages are requeued in one step, and for how many steps the loop may wait.
BATCH, BATCHES = 50, 20
#: Seconds until a renewal that failed is tried again.
AGAIN = 1.0

#: The record of an unacknowledged message: the message, its exchange and its routing key.
RECORD = re.compile(rb'\[(.*), "[^"]*", "([^"]*)"\]', re.DOTALL)

SCRIPT = script(__name__, "leases")
SHA = sha1(SCRIPT.encode()).hexdigest()


class Lease:
    """The lease of this process on one server's messages. `owner` is another one each time that it connects again."""

    def __init__(self, channel: Channel) -> None:
        self.unacked = f"{channel.global_keyprefix}{channel.unacked_key}"
        self.index = f"{channel.global_keyprefix}{channel.unacked_index_key}"
        self.seconds = channel.lease_seconds
        self.owner = ""
        #: Its channels. All but the last one are closed, or have lost their connection.
        self.channels: WeakSet[Channel] = WeakSet()
        self.lost = False
        self.until = 0.0  # it lasts at least so long, by clock()
        self.renew_at = self.sweep_at = self.times_at = 0.0
        self.times_every = channel.visibility_timeout / 4
        self._ahead = 0.0  # the server's clock, relative to clock()
        #: Connections for the thread alone, none of which is open before it uses them.
        self.pool = channel._get_pool()
        #: Tags whose acknowledgements the server has not received yet. They outlive their connection, so that no task runs
        #: again because a server froze or a connection was lost.
        self.acks: deque[str] = deque()
        #: The tags of messages whose tasks have begun in this process itself, until they are acknowledged.
        self.begun: set[str] = set()

    def running(self) -> set[str]:
        """The tags of messages whose tasks run; none in a worker that stops, because it gives all messages back."""
        state = sys.modules.get("celery.worker.state")
        # Each is None or False, or an exit code, of which 0 equals False.
        if state is None or any(stop is not None and stop is not False for stop in (state.should_stop, state.should_terminate)):
            return set()
        return self.begun | {request.message.delivery_tag for request in list(state.active_requests)}

    def call(self, client: Client, operation: str, *args: object, owner: str = "") -> object:
        """Do one of the operations of `leases.lua`. Raises redis-py's errors."""
        given = [dead.recorded(one) if isinstance(one, str) else one for one in args]
        words = (2, self.unacked, self.index, operation, owner or self.owner, *given)
        try:
            return client.execute_command("EVALSHA", SHA, *words)
        except NoScriptError:
            return client.execute_command("EVAL", SCRIPT, *words)

    def join(self, channel: Channel) -> None:
        """Have the lease include the messages of `channel`, which begins to consume. Raises redis-py's errors."""
        if self.lost or not any(not one.closed and one.owner == self.owner for one in self.channels):
            self._begin(channel)
        self.channels.add(channel)
        channel.lease, channel.owner = self, self.owner

    def _begin(self, channel: Channel) -> None:
        client, sent, former = channel.plain_client, clock(), self.owner
        owner = f"{broker.node()}/{processes.mark(os.getpid())}.{uuid4().hex[:8]}"
        kept = [*self.running(), *self.acks] if former else []
        self._seen(cast("bytes", self.call(client, "begin", self.seconds, former, *kept, owner=owner)), sent)
        self.owner, self.lost, self.sweep_at, self.pool = owner, False, 0.0, channel._get_pool()
        for other in client.zrange(f"{self.unacked}.leases", 0, -1):
            if _is_dead_predecessor(bytes_to_str(other), owner):
                self.call(client, "end", owner=bytes_to_str(other))
        renewal.start(LEASES, _client)

    def _seen(self, answer: bytes, sent: float) -> None:
        self.until, self.renew_at = sent + self.seconds, sent + self.seconds / 3
        self._ahead = float(answer) - clock()

    @property
    def due(self) -> float:
        """Seconds until it has to be renewed."""
        return math.inf if self.lost else self.renew_at - clock()

    def renew(self, client: Client) -> bool:
        """Renew it, in any thread. Returns whether it lasts. Raises redis-py's errors."""
        owner, sent = self.owner, clock()
        self.renew_at = sent + AGAIN
        times = sent >= self.times_at
        answer = self.call(client, "renew", self.seconds, int(times), owner=owner)
        if times:
            self.times_at = sent + self.times_every
        if owner == self.owner:
            if answer:
                self._seen(cast("bytes", answer), sent)
            else:
                self.lost = True
        return not self.lost

    def lasts(self, channel: Channel) -> bool:
        """Whether `channel` still holds its messages. Asks the server if that is not sure. Raises redis-py's errors."""
        if self.lost or channel.owner != self.owner:
            return False
        return clock() < self.until or self.renew(channel.plain_client)

    def keep(self, channel: Channel) -> None:
        """Called by the loop: look for ended leases if that is due. Raises LostConnection if this one has ended."""
        try:
            lasts = self.lasts(channel)
            if lasts and clock() >= self.sweep_at:
                self._sweep(channel)
        except ResponseError as error:  # such as READONLY, after a failover: connect again
            raise LostConnection(f"Redis refused to renew the lease: {error}") from error
        if not lasts:
            raise LostConnection("this worker was taken for dead, and others got its messages")

    def _sweep(self, channel: Channel) -> None:
        client = channel.plain_client
        answer = self.call(client, "ended", self.seconds, f"{clock() + self._ahead:.6f}")
        wait, *ended = cast("list[bytes]", answer)
        # The lease of a dead worker is the only one that nobody renews before it ends: look once it has.
        soon = min(self.seconds / 3, float(wait)) + random.uniform(0.01, 0.2)
        self.sweep_at = clock() + soon
        for other in map(bytes_to_str, ended):
            if other != self.owner and not self._restore_all_of(other, channel):
                self.sweep_at = 0.0

    def _restore_all_of(self, owner: str, channel: Channel) -> bool:
        """Requeue what an ended lease held, the oldest last, so that it is the next message. Returns whether that is all."""
        client, number = channel.plain_client, 0
        for _ in range(BATCHES):
            tags = client.zrange(f"{self.unacked}.held:{owner}", 0, BATCH - 1, desc=True)
            number += self.restore(channel, [dead.tag_of(cast("bytes", tag)) for tag in tags], owner=owner)
            if len(tags) < BATCH:
                break
        if number:
            log.warning("requeued %d messages of %s, which is dead or has lost its connection", number, named(owner))
        return len(tags) < BATCH

    def restore(self, channel: Channel, tags: Collection[str], leftmost: bool = False, owner: str = "") -> int:
        """Requeue those of the messages that the owner holds. Returns their number. Raises redis-py's errors."""
        client, words = channel.plain_client, list[object]()
        records = client.execute_command("HMGET", self.unacked, *map(dead.recorded, tags)) if tags else ()
        for tag, record in zip(tags, records, strict=True):
            batch = _Commands(channel.global_keyprefix)
            if record:
                try:
                    message, exchange, routing_key = loads(record.decode())
                    channel._do_restore_message(message, exchange, routing_key, cast("Pipeline", batch), leftmost)
                except channel.connection_errors:
                    raise
                except Exception as error:  # no worker can read it, and none shall fail on it again
                    whole = RECORD.match(cast("bytes", record))
                    dead.put_raw(channel, whole[1] if whole else record, bytes_to_str(whole[2]) if whole else "", error)
                    self.call(client, "ack", tag, owner=owner)
            words += [tag, len(batch.recorded), *(word for command in batch.recorded for word in command)]
        return cast("int", self.call(client, "restore", *words, owner=owner))

    def leave(self, channel: Channel) -> None:
        """Called when `channel` is closed. The lease ends with its last channel, unless tasks run that outlive a connection."""
        self.channels.discard(channel)
        if not any(not one.closed for one in self.channels) and not self.running() and not self.acks:
            LEASES.pop(channel.lease_key, None)
            with suppress(*channel.connection_errors):
                self.call(channel.plain_client, "end")


def _client(pool: ConnectionPool) -> Client:
    return cast("Client", Redis(connection_pool=cast("RedisPool", pool)))


#: The leases of this process, by the server's address and the hash of unacknowledged messages.
LEASES: dict[tuple[str, str], Lease] = {}


class _Commands:
    """Records the commands that requeue a message."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.recorded: list[tuple[str, str, str]] = []

    def lpush(self, key: str, value: str) -> None:
        self.recorded.append(("LPUSH", f"{self.prefix}{key}", value))

    def rpush(self, key: str, value: str) -> None:
        self.recorded.append(("RPUSH", f"{self.prefix}{key}", value))


class _Acknowledgement:
    """In place of kombu's pipeline that removes the record of a message."""

    def __init__(self, channel: Channel, tag: str) -> None:
        self.channel, self.tag = channel, tag

    def execute(self) -> None:
        """Remove it, if this process still holds the message. Raises redis-py's errors."""
        if lease := self.channel.lease:
            lease.call(self.channel.plain_client, "ack", self.tag)


class QoS(dead.QoS):
    """The unacknowledged messages of a channel, which this process holds by a lease if the channel consumes."""

    channel: Channel

    def take(self, lease: Lease, message: virtual.Message, tag: str) -> None:
        """Record a message that was popped. Raises LostConnection, with the message requeued, if the lease has ended."""
        info = message.delivery_info
        record = dumps([message._raw, info["exchange"], info["routing_key"]])
        if not lease.call(self.channel.plain_client, "take", tag, record):
            lease.lost = True
            super().restore_by_tag(tag)
            raise LostConnection("this worker was taken for dead, and others got its messages")
        virtual.QoS.append(self, message, tag)

    def _remove_from_indices(self, delivery_tag: str, pipe: Pipeline | None = None) -> Pipeline:
        if pipe is not None or self.channel.lease is None:
            return super()._remove_from_indices(delivery_tag, pipe)
        return cast("Pipeline", _Acknowledgement(self.channel, delivery_tag))

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue or dead-letter a message. Raises redis-py's errors."""
        if requeue and (lease := self.channel.lease):
            try:
                self.channel.give_back([delivery_tag], leftmost=True)
            except Exception:
                lease.begun.discard(delivery_tag)
                lease.lost = True  # the loop connects again, and what no task holds is requeued
                raise
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().reject(delivery_tag, requeue)

    def restore_unacked(self, client: Client | None = None) -> None:
        """Requeue all messages but those of running tasks, which keep theirs when the connection is lost."""
        if self.channel.lease is None:
            super().restore_unacked(client)
            return
        self.channel.counts_deliveries = False
        try:
            kept = self.channel.lease.running()
            self.channel.give_back([tag for tag in reversed(self._delivered) if tag not in kept])
            self._delivered.clear()
        finally:
            self.channel.counts_deliveries = True


class Channel(dead.Channel):
    """A channel that holds its messages by a lease once it consumes."""

    QoS = QoS
    from_transport_options = (*dead.Channel.from_transport_options, "lease_seconds")
    lease_seconds = SECONDS
    lease: Lease | None = None
    owner = ""
    server = ""
    _plain_client: Client | None = None

    @property
    def plain_client(self) -> Client:
        """A client that leaves keys as they are: kombu's adds its prefix to some commands only."""
        client = self._plain_client
        if client is None or client.connection_pool is not self.pool:
            client = self._plain_client = _client(self.pool)
        return client

    @property
    def address(self) -> str:
        """The server, as a URL."""
        return str(self.connection.client.as_uri())

    @property
    def lease_key(self) -> tuple[str, str]:
        """The key of the lease in LEASES."""
        return self.server, self.unacked_key

    def hold(self) -> None:
        """Begin to hold messages by a lease. Raises redis-py's errors."""
        if self.lease is not None:
            return
        self.server = self.address
        try:
            LEASES.setdefault(self.lease_key, Lease(self)).join(self)
        except ResponseError as error:
            refuse_for_now(error)
            LEASES.pop(self.lease_key, None)
            log.warning("without leases, ENGINE=plain: a dead worker's messages wait for the visibility timeout: %s", error)

    def holds(self, tag: str) -> bool:
        """Whether a task whose message has this tag may begin. A message that may not, and is still held, is requeued."""
        lease = self.lease
        if lease is None:
            return True
        try:
            if not self.closed and lease.lasts(self):
                qos = self.qos
                if tag in qos._delivered and tag not in qos._dirty:
                    lease.begun.add(tag)
                return True
            lease.restore(self, [tag], owner=self.owner)  # not the next owner's, who may have got it again
        except Exception:
            lease.lost = True  # the loop connects again, and what no task holds is requeued
        return False

    def give_back(self, tags: Collection[str], leftmost: bool = False) -> None:
        """Requeue those of the messages that this process still holds. Raises redis-py's errors."""
        if self.lease and tags:
            self.lease.restore(self, tags, leftmost)


def refuse_for_now(error: ResponseError) -> None:
    """Raise LostConnection for the answer of a server that cannot write for now: it counts as one that is away."""
    if cannot_write(error):
        raise LostConnection(f"Redis refuses to write: {error}") from error


def named(owner: str) -> str:
    """The node name of a lease's owner."""
    return owner.rpartition("/")[0]


def _is_dead_predecessor(other: str, owner: str) -> bool:
    """Whether `other` is an earlier worker with the node name of `owner` whose process is known to be dead.

    A living worker in another container may have the same node name, and the same process id.
    """
    if other == owner or named(other) != named(owner):
        return False
    process = other.rpartition("/")[2].partition(".")[0]
    if process == processes.mark(os.getpid()):
        return not process.startswith("-") and not any(lease.owner == other for lease in LEASES.values())
    return processes.marks_dead(process)


def _in_child() -> None:
    LEASES.clear()
    renewal.close_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
