"""kombu's Redis transport, with AMQP's meaning of a task's priority, and on ENGINE=fast with the fetch of `fetch.py`.

Priorities are 0 to 9, higher is more urgent, and no priority means 0. kombu's transport has the opposite order. It has one list
for each step of priorities, and a worker reads from the first list that is not empty, so the order of the steps is the order of
urgency. A message is written to one of kombu's own four steps, so that a worker of plain Celery sees it too. The steps between
them are also read, because earlier releases wrote to them. Messages without a priority stay in the list that has the queue's
plain name. Source: kombu/transport/redis.py, Channel._brpop_start, _q_for_pri, _put.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakSet

from redis.exceptions import ConnectionError as LostConnection
from redis.exceptions import NoPermissionError, ResponseError

from celery_kit.base.messages import QUEUE, SIGNATURE
from celery_kit.brokers.redis import delayed, leases
from celery_kit.brokers.redis.bulk import Commands
from celery_kit.brokers.redis.credentials import read_again
from celery_kit.brokers.redis.fetch import Fetcher
from celery_kit.brokers.redis.poller import Poller
from celery_kit.engine.commit import commit
from celery_kit.fixes import patched

log = logging.getLogger(__name__)
#: The signature of a message that is not parsed yet.
SIGNED = re.compile(rb'"%b": ?"([\w.= -]+)"' % SIGNATURE.encode())
#: Milliseconds to wait for replicas: less than socket_timeout, and so long that a message is seldom sent again for it.
CONFIRM = 3_000
if TYPE_CHECKING:
    from upstream import kombu_redis as redis
    from upstream import kombu_virtual as virtual
    from upstream.kombu_hub import Hub
    from upstream.kombu_redis import Channel as KombusChannel
    from upstream.redis import Client, Connection, Pipeline

    from celery_kit.base.types import Connection as AnyConnection
    from celery_kit.base.types import Headers, Options
    from celery_kit.brokers.redis.fixes import Batch
    from celery_kit.brokers.redis.leases import Channel as ChannelBase
    from celery_kit.brokers.redis.leases import QoS as QoSBase

else:
    from kombu.transport import redis, virtual

    KombusChannel = redis.Channel
    QoSBase = patched(leases.QoS, "failed_ack", "server_clock")
    ChannelBase = patched(leases.Channel, "fanouts", "redis_restart", "earlier_channel")


class QoS(QoSBase):
    """The unacknowledged messages. On ENGINE=fast the fetch has recorded them, and sends their acknowledgements."""

    channel: Channel
    #: The tag of the message that is being handed over, and was recorded when it was fetched.
    recorded = ""

    def append(self, message: virtual.Message, delivery_tag: str) -> None:
        """Record a delivered message as unacknowledged. Raises redis-py's errors."""
        if delivery_tag == self.recorded:
            virtual.QoS.append(self, message, delivery_tag)
        elif lease := self.channel.lease:
            self.take(lease, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a message. Raises redis-py's errors; on ENGINE=fast it only sends it later."""
        fetcher = self.channel.fetcher
        try:
            if fetcher is None:
                super().ack(delivery_tag)
            else:
                virtual.QoS.ack(self, delivery_tag)
                fetcher.acknowledge(delivery_tag)
        finally:
            self.channel.after_ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Requeue or dead-letter a message. Raises redis-py's errors."""
        super().reject(delivery_tag, requeue)
        self.channel.after_ack(delivery_tag)

    def can_consume(self) -> bool:
        """Whether the prefetch window has a free slot."""
        fetcher, window = self.channel.fetcher, self.prefetch_count
        return super().can_consume() if fetcher is None else not window or self.held < window + fetcher.throughput.ahead

    @property
    def held(self) -> int:
        """How many messages' tasks wait or run."""
        return len(self._delivered or ()) - len(self._dirty or ()) - commit.done

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:
        """Requeue the messages of dead workers, as kombu. Who may not, such as who waits for replies, leaves it to workers."""
        with suppress(NoPermissionError):
            super().restore_visible(start, num, interval)

    def restore_unacked_once(self, stderr: object = None) -> None:
        """Requeue what is unacknowledged when the process exits, after the acknowledgements are sent."""
        commit.try_flush()
        if fetcher := self.channel.fetcher:
            fetcher.flush()
        super().restore_unacked_once(stderr)
        if lease := self.channel.lease:
            lease.leave(self.channel)


class Channel(ChannelBase):
    """See the module."""

    QoS = QoS
    connection: Transport
    #: The steps that are read, the most urgent first.
    priority_steps = list(range(9, -1, -1))  # noqa: RUF012  # as in kombu
    #: The steps that are written: kombu's own, or those of the transport option priority_steps.
    written = tuple(redis.PRIORITY_STEPS)
    from_transport_options = (*ChannelBase.from_transport_options, "engine", "take_ahead")
    #: The value of the setting ENGINE.
    engine = "plain"
    #: Whether messages beyond the prefetch count may be fetched: celery_kit/engine/prefetch.py.
    take_ahead = True
    fetcher: Fetcher | None = None
    #: How many replicas must have a message before it counts as sent.
    replicas = 0
    #: Of what active_queues was made, and itself.
    _consumed: tuple[list[str], set[str], Collection[str]] = ([], set(), ())
    _own_client: Client | None = None

    def __init__(self, connection: Transport, **options: object) -> None:
        super().__init__(connection, **options)
        if (named := self.priority_steps) is not type(self).priority_steps:
            self.written = tuple(named)
            self.priority_steps = sorted({*named, *type(self).priority_steps}, reverse=True)

    @property
    def active_queues(self) -> Collection[str]:
        """kombu's, made once for each change: the loop asks for it several times in each of its rounds."""
        queues, fanouts, found = self._consumed
        if queues != self._active_queues or fanouts != self.active_fanout_queues:
            found = super().active_queues
            self._consumed = list(self._active_queues), set(self.active_fanout_queues), found
        return found

    def _connparams(self, asynchronous: bool = False) -> Options:
        return read_again(super()._connparams(asynchronous))

    def _get_message_priority(self, message: Headers, reverse: bool = False) -> int:
        """The step that a message is written to."""
        priority = super()._get_message_priority(message, reverse=reverse)
        return max((int(step) for step in self.written if step <= priority), default=min(self.written))

    def _put(self, queue: str, message: Headers, _publish_batch: Batch | None = None, **options: object) -> None:
        if self.replicas and _publish_batch is None:
            commands = Commands()
            self._put(queue, message, commands, **options)
            with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
                for name, arguments in commands.recorded:
                    getattr(pipe, name)(*arguments)
                self.run(pipe)
        elif self.engine != "fast" or not delayed.put(self, queue, message, _publish_batch):
            super()._put(queue, message, _publish_batch=_publish_batch, **options)

    def known_replicas(self) -> int:
        """How many replicas the server is to have."""
        return self.replicas

    def run(self, pipe: Pipeline) -> list[object]:
        """Send commands that publish, outside of a transaction. Returns their answers. Raises redis-py's errors.

        Raises LostConnection if too few replicas have what they wrote: a failover could lose it.
        """
        if not self.replicas:
            return pipe.execute()
        answers = pipe.execute_command("WAIT", self.replicas, CONFIRM).execute()
        if answers.pop() < self.replicas:
            raise LostConnection(f"no replica of the server has it within {CONFIRM / 1_000:g} s")
        return answers

    def priority(self, n: int) -> int:
        """The step that a message of priority `n` belongs to; kombu expects ascending steps here."""
        return max(step for step in self.priority_steps if step <= n)

    def _create_client(self, asynchronous: bool = False) -> Client:
        """The client, made once for a pool of connections. kombu makes one for every message, a third of a `delay()`."""
        if asynchronous:
            return KombusChannel._create_client(self, asynchronous)
        if self._own_client is None or self._own_client.connection_pool is not self.pool:
            self._own_client = KombusChannel._create_client(self)
        return self._own_client

    def basic_consume(self, queue: str, no_ack: bool = False, *args: object, **options: object) -> object:
        """Consume a queue, by the fetch on ENGINE=fast. Returns the consumer tag."""
        if queue not in self._fanout_queues:
            if no_ack:
                self.be_plain()
            else:
                self.hold()
                if self.engine == "fast" and self.fetcher is None and self.lease:
                    self.fetcher = Fetcher(self, self.lease, self.connection.cycle.wake)
        return super().basic_consume(queue, no_ack, *args, **options)

    def be_plain(self) -> None:
        """From now on, consume like kombu: messages that are consumed without acknowledgements must not be recorded."""
        self.engine = "plain"
        fetcher, self.fetcher = self.fetcher, None
        if fetcher:
            fetcher.hand_back()

    @property
    def prefetched(self) -> Collection[object]:
        """Messages that were fetched, and wait for a free slot in the prefetch window."""
        return self.fetcher.ready if self.fetcher else ()

    def signatures_ahead(self, most: int) -> Iterator[tuple[str, str]]:
        """The queues and the signatures of the first of these messages, `most` of them, as far as they have one."""
        for queue, raw in list(islice(self.fetcher.ready, most)) if self.fetcher else ():
            if found := SIGNED.search(raw):
                yield queue, found[1].decode()

    def refill(self) -> None:
        """Called when a slot is free and the loop was not notified."""
        if self.fetcher:
            self.fetcher.refill()

    def after_ack(self, tag: str) -> None:
        """Wake a loop without a hub, which may now take another message; send acknowledgements that no loop will send."""
        if self.lease:
            self.lease.begun.discard(tag)
        cycle = self.connection.cycle if self.connection else None
        if cycle is None or self.closed or not self.active_queues:
            if self.fetcher:
                self.fetcher.flush()
        elif self.fetcher is None:
            cycle.wake_from_elsewhere()

    def _basic_cancel(self, consumer_tag: str) -> object:
        answer = super()._basic_cancel(consumer_tag)
        if self.fetcher and not self._closing:
            self.fetcher.hand_back()
        return answer

    def _on_connection_disconnect(self, connection: Connection) -> None:
        if self.fetcher and connection is getattr(self.__dict__.get("client"), "connection", None):
            self.fetcher.lost()
        super()._on_connection_disconnect(connection)

    def _flush_brpop_reauth(self) -> None:
        if self.fetcher is None or not self.fetcher.waits:
            super()._flush_brpop_reauth()

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Bind a queue. A server that refuses to write for now counts as one that is away, which does not end a worker.

        A producer need not have the right to it: workers bind the queues that they consume.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except NoPermissionError as error:
            log.debug("this account may not bind queue %s: %s", queue, error)
        except ResponseError as error:
            leases.refuse_for_now(error)
            raise

    def sweep_bindings(self, limit: int = 100) -> int:
        """Drop the bindings of queues that have expired. Who may not leaves it to the workers."""
        try:
            return super().sweep_bindings(limit)
        except NoPermissionError:
            return 0

    def close(self) -> None:
        """Close the channel, after fetched messages are requeued and acknowledgements sent.

        If the server refuses that, as with a full disk, they stay under a lease, which ends with its last open channel.
        """
        try:
            if self.fetcher and not self._closing:
                with suppress(*self.connection_errors, ResponseError):
                    self.fetcher.hand_back()
        finally:
            super().close()


class Transport(redis.Transport):
    """kombu's transport, with the channel and poller above."""

    Channel = Channel
    cycle: Poller
    #: The transports of this process.
    living: ClassVar[WeakSet[Transport]] = WeakSet()

    def __init__(self, client: AnyConnection, **options: object) -> None:
        super().__init__(client, **options)
        self.cycle = Poller(self.drop_idle)
        self.living.add(self)

    def _deliver(self, message: Headers, queue: str) -> None:
        """Deliver a message, which notes the queue that it was taken from: others may have got the same message."""
        with suppress(KeyError, TypeError):  # an item that is no message, which the channel dead-letters
            message["properties"]["delivery_info"][QUEUE] = queue
        super()._deliver(message, queue)

    @classmethod
    def drop_idle(cls) -> None:
        """Close idle connections: they may be as dead as the one on which the server did not answer."""
        for transport in list(cls.living):
            for channel in list(transport.channels):
                if channel._pool is not None:
                    channel._pool.disconnect(inuse_connections=False)

    def register_with_event_loop(self, connection: object, loop: Hub) -> None:
        """Have the worker's `loop` poll."""
        self.cycle.hub = loop
        super().register_with_event_loop(connection, loop)
