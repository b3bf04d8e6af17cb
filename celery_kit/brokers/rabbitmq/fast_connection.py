"""AMQP connections of ENGINE=fast, with fewer system calls: they read ahead, and send acknowledgements together.

The worker's loop handles everything that one read has taken (`read_ahead.py`). Acknowledgements are buffered until the loop's
next tick, or the end of a commit's group (`celery_kit/engine/commit.py`), and sent in one write. Those without a gap are one
frame, with `multiple`. Source: amqp 5.4.2, transport.py, channel.py; kombu 5.7.0, transport/pyamqp.py.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from struct import pack
from typing import TYPE_CHECKING

from amqp import spec
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from celery_kit.base.messages import SIGNATURE
from celery_kit.brokers.rabbitmq import transport
from celery_kit.brokers.rabbitmq.frames_in import amqps_frame_handler
from celery_kit.brokers.rabbitmq.frames_out import Publishing
from celery_kit.brokers.rabbitmq.read_ahead import METHOD, SSLTransport, TCPTransport, frame
from celery_kit.brokers.rabbitmq.window import TURN, Window
from celery_kit.engine.commit import commit
from celery_kit.engine.parts import on
from celery_kit.engine.wakeup import WakeUp

if TYPE_CHECKING:
    from amqp.protocol import queue_declare_ok_t
    from upstream.amqp import Channel as KombusChannel
    from upstream.amqp import Message
    from upstream.kombu_hub import Hub

    from celery_kit.brokers.rabbitmq.window import Rest, Sent
else:
    KombusChannel = pyamqp.Channel


def _ack_frame(channel: int, tag: int, multiple: bool) -> bytes:
    return frame(METHOD, channel, pack(">HHQB", *spec.Basic.Ack, tag, multiple))


class Channel(Publishing, KombusChannel):
    """A channel that knows which deliveries are neither acknowledged nor rejected, so that one frame can acknowledge many."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        self._tags = threading.RLock()
        #: By delivery tag: those that are neither acknowledged nor rejected, and those whose acknowledgement is not sent yet.
        self.unacked: dict[int, Sent | None] = {}
        self._acked: dict[int, Sent | None] = {}
        # After an error of the channel the broker counts deliveries from 1 again, and redelivers open ones. Here the count
        # continues, so that the acknowledgement of an earlier delivery cannot acknowledge another one.
        self._before = self._last = 0
        self.refilling = False  # the loop was woken, and has not handed over yet
        self.window = Window(self, self._tags)
        super().__init__(*args, **kwargs)

    def _on_open_ok(self) -> None:
        self._forget()
        self._before = self._last
        super()._on_open_ok()

    def collect(self) -> None:
        """The connection is closed: forget deliveries and acknowledgements."""
        self._forget()
        super().collect()

    def _forget(self) -> None:
        with self._tags:
            self.unacked.clear()
            self._acked.clear()
        self.window.forget()

    def _delivered(self, tag: int, to_acknowledge: bool) -> int:
        with self._tags:
            self._last = self._before + tag
            if to_acknowledge:
                self.unacked[self._last] = None
            return self._last

    def _on_basic_deliver(self, consumer_tag: str, delivery_tag: int, *rest: *Rest) -> None:
        tag = self._delivered(delivery_tag, consumer_tag not in self.no_ack_consumers)
        self.window.take(consumer_tag, tag, *rest)

    def hand_over(self, consumer_tag: str, delivery_tag: int, *rest: *Rest) -> None:
        """Give a delivery to its consumer."""
        super()._on_basic_deliver(consumer_tag, delivery_tag, *rest)

    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool, argsig: str = "lBb") -> object:
        """Set the prefetch count, like py-amqp."""
        self.window.prefetch = None if a_global else prefetch_count
        return super().basic_qos(prefetch_size, prefetch_count, a_global, argsig)

    def queue_declare(self, queue: str = "", *args: object, **options: object) -> queue_declare_ok_t:
        """Declare a queue, like py-amqp."""
        goes = options.get("auto_delete", True) or options.get("exclusive")
        if not (args or goes or options.get("passive")):
            self.window.lasting.add(queue)
        answer: queue_declare_ok_t = super().queue_declare(queue, *args, **options)
        return answer

    def basic_consume(self, queue: str = "", consumer_tag: str = "", *args: object, **options: object) -> str:
        """Consume a queue, like py-amqp. Returns the consumer tag."""
        if consumer_tag and not (args or options.get("no_ack") or options.get("exclusive")):
            self.window.add(queue, consumer_tag, bool(options.get("no_local")), options.get("arguments"))
        return super().basic_consume(queue, consumer_tag, *args, **options)

    def basic_cancel(self, consumer_tag: str, nowait: bool = False, argsig: str = "sb") -> object:
        """Cancel a consumer, and requeue what is buffered for it."""
        answer = super().basic_cancel(self.window.remove(consumer_tag), nowait, argsig)
        self._remove_tag(consumer_tag)
        return answer

    def _on_get_ok(self, delivery_tag: int, *rest: object) -> object:
        return super()._on_get_ok(self._delivered(delivery_tag, False), *rest)

    def basic_get(self, queue: str = "", no_ack: bool = False, argsig: str = "Bsb") -> Message | None:
        """One message of a queue, like py-amqp; None if it is empty."""
        message = super().basic_get(queue, no_ack, argsig)
        if message and not no_ack:
            with self._tags:
                self.unacked[message.delivery_tag] = None
        return message

    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None:
        """Acknowledge a delivery; `multiple`: and all before it. Raises RecoverableConnectionError on a closed channel."""
        if self.connection is None:
            raise RecoverableConnectionError("channel is closed")
        with self._tags:
            # Deliveries that are not known are from before the channel's last error: their messages are redelivered.
            known = self.unacked
            for tag in [tag for tag in known if tag <= delivery_tag] if multiple else {delivery_tag} & known.keys():
                self._acked[tag] = self.window.settled(known.pop(tag))
                self.window.throughput.done()
        if not commit.defer(self.flush_acks) and self.connection.loop is None:  # the loop sends them at its next tick
            self.flush_acks()

    def flush_acks(self) -> None:
        """Send the buffered acknowledgements in one write. Raises the connection's errors."""
        with self._tags:
            if not self._acked or self.connection is None:
                return
            self.window.answering(self._acked.values())
            acked, self._acked = sorted(self._acked), {}
            together = bisect_left(acked, min(self.unacked)) if self.unacked else len(acked)
            frames = [_ack_frame(self.channel_id, tag - self._before, False) for tag in acked[together:]]
            if together:
                frames.insert(0, _ack_frame(self.channel_id, acked[together - 1] - self._before, True))
            self.connection.send_frames(frames)
        if self.window.ready:
            self.connection.wake()

    @property
    def prefetched(self) -> Collection[object]:
        """Messages that were sent ahead, and wait for a free slot in the prefetch window."""
        return self.window.ready

    def signatures_ahead(self, most: int) -> Iterator[tuple[str, str]]:
        """The consumer tags and the signatures of the first of these messages, `most` of them, as far as they have one."""
        for tag, *_, message in list(islice(self.window.ready, most)):
            line = (message.properties.get("application_headers") or {}).get(SIGNATURE)
            if isinstance(line, str):
                yield tag, line

    def refill(self) -> None:
        """Wake the loop once half of the prefetch window is free: waking it for every free slot would cost more."""
        if self.window.is_half_free() and not self.refilling:
            self.refilling = True
            self.connection.wake()

    def basic_reject(self, delivery_tag: int, requeue: bool, argsig: str = "Lb") -> None:
        """Requeue or dead-letter an open delivery. Raises the connection's errors."""
        with self._tags:
            if delivery_tag in self.unacked:
                self.window.answering([self.window.settled(self.unacked.pop(delivery_tag))])
                super().basic_reject(delivery_tag - self._before, requeue, argsig)

    def basic_recover(self, requeue: bool = False) -> object:
        """Have the broker redeliver what is open, after the acknowledgements are sent."""
        self.flush_acks()
        with self._tags:
            for sent in self.unacked.values():
                self.window.settled(sent)
            self.unacked.clear()
        return super().basic_recover(requeue)

    def close(self, *args: object, **kwargs: object) -> object:
        """Close the channel, after the acknowledgements are sent."""
        with suppress(*pyamqp.Transport.connection_errors):
            self.flush_acks()
        return super().close(*args, **kwargs)


def _channels(connection: Connection) -> list[Channel]:
    """Its open channels; the connection is its own channel 0."""
    return [channel for channel in connection.channels.values() if channel is not connection] if connection.channels else []


class Connection(transport.Connection):
    """A connection of ENGINE=fast."""

    Channel: type = Channel
    #: The worker's event loop, if it has one.
    loop: Hub | None = None
    _wake_up: WakeUp | None = None
    _loops_thread: int | None = None

    def __init__(self, *args: object, take_ahead: bool = True, **options: object) -> None:
        self.take_ahead = take_ahead
        super().__init__(*args, **({} if on("frames_in") else {"frame_handler": amqps_frame_handler}) | options)

    def Transport(
        self,
        host: str,
        connect_timeout: float | None,
        ssl: Mapping[str, object] | bool = False,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        **options: object,
    ) -> object:
        """A socket that reads ahead, with py-amqp's arguments. Times are in seconds."""
        kind = SSLTransport if ssl else TCPTransport
        return kind(host, connect_timeout, ssl=ssl, read_timeout=read_timeout, write_timeout=write_timeout, **options)

    def attach(self, loop: Hub) -> None:
        """Have `loop` handle what arrives, and send the acknowledgements."""
        self.loop, self._wake_up = loop, WakeUp()
        loop.add_reader(self.sock, self.on_readable)
        loop.add_reader(self._wake_up, self._on_wake_up)
        loop.on_tick.add(self.on_tick)

    def wake(self) -> None:
        """Have the loop check whether it can hand more over. From any thread."""
        loop, wake_up = self.loop, self._wake_up
        if loop is None or wake_up is None:  # another thread may have closed the connection
            return
        if threading.get_ident() == self._loops_thread:
            loop.call_soon(self.handle)
        else:
            wake_up.wake()

    def _on_wake_up(self) -> None:
        if self._wake_up:
            self._wake_up.drain()
            self.handle()

    def collect(self) -> None:
        """Close the socket without asking the broker, and leave the loop."""
        wake_up, self._wake_up = self._wake_up, None
        if wake_up and self.loop:
            self.loop.remove_reader(wake_up)
            wake_up.close()
        super().collect()

    def on_readable(self) -> None:
        """Called when something has arrived. Raises RecoverableConnectionError if the connection is closed."""
        if not self.connected:
            raise RecoverableConnectionError("Socket was disconnected")
        self.handle()

    def handle(self) -> None:
        """Handle what has arrived, for TURN seconds at most; the loop's next round handles the rest."""
        source = self._transport
        until = time.monotonic() + TURN
        for channel in _channels(self):
            channel.refilling = False
            channel.window.hand_over()
        while source and source is self._transport:  # a handler may have closed the connection
            received = source.next_frame()
            if received is not None:
                if self.on_inbound_frame(received) and time.monotonic() > until:
                    return
            elif not source.read_now():
                return

    def on_tick(self) -> None:
        """Called when the loop is about to wait."""
        if (loop := self.loop) is None:
            return
        if not self.connected:
            loop.on_tick.discard(self.on_tick)
            return
        self._loops_thread = threading.get_ident()
        more, now = self._transport.buffered, time.monotonic()
        for channel in _channels(self):
            channel.flush_acks()
            more = channel.window.turn(now) or more
        if more:
            loop.call_soon(self.handle)

    def send_frames(self, frames: list[bytes]) -> None:
        """Write whole frames at once. Raises the connection's errors."""
        self.transport.write(b"".join(frames))
        self.bytes_sent += len(frames)
