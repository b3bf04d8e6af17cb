"""kombu's AMQP transport, on both engines: nobody waits without end for a broker that does not answer.

Bounded. py-amqp waits for the broker's answers - to a declaration, a publish, a goodbye - without end, in the worker's loop
too. Here a connection that does not answer in time is given up. A producer has a time of its own, and learns why: RabbitMQ does
not answer publishers while it has a memory or disk alarm, which it reports once (connection.blocked) and py-amqp keeps to
itself; a full queue that rejects answers with a nack. A message that no queue takes is confirmed like any other, and dropped;
where it is `mandatory` it comes back first. That happens to the first messages of a new queue: of two that bind it to a topic
exchange at the same time, a worker that starts and a producer, the second is told that it is bound before it is.

Looked at. py-amqp 5.4.2 gives a connection up when its loop has read nothing for two heartbeat intervals. A broker may well be
silent for one, so a shorter interval would only trade the wait for false alarms. And what has arrived while the loop was held
up, by a task on solo or by a busy machine, counts as nothing: the first look afterwards comes before the first read, and closes
a connection that is alive. Here what waits to be read counts, and a silent broker is asked: `channel.flow` with the value that
it has, which the broker has to answer at once. It is not asked while it has blocked the connection, for it reads nothing then;
nor on a connection that only sends, as the one for events: nobody waits there, and TCP gives it up within seconds of what it
has sent in vain. A broker that has not answered gets no goodbye.
Sources: amqp 5.4.2, channel.py, basic_publish_confirm, connection.py, heartbeat_tick; celery 5.7.0, worker/loops.py, asynloop;
https://www.rabbitmq.com/docs/connection-blocked. Can go when test_silence.py and test_dead_connection.py in
tests/unit/brokers/rabbitmq pass with kombu's.
"""

from importlib import import_module
from struct import unpack
from time import monotonic
from typing import Any

from amqp import spec
from amqp.exceptions import ConnectionForced, MessageNacked, RecoverableConnectionError
from kombu.transport import pyamqp

from celery_kit.base.messages import RefusedError, UnroutedError
from celery_kit.pools.lifeline import lifeline

try:
    import fcntl
    import termios
except ImportError:  # Windows: a dead connection is given up when py-amqp does
    fcntl = termios = None  # type: ignore[assignment]

#: Seconds that the broker may take for an answer, and for its goodbye.
ANSWER, GOODBYE = 10.0, 2.0
#: Seconds of silence after which the broker is asked, and that it has for its answer to that.
SILENCE, ASKED = 4.0, 5.0
#: Heartbeats that go out in an interval, however often somebody looks; py-amqp's own.
BEATS = 2.0

# The stubs of amqp and kombu know little of them.
KombusChannel: Any = pyamqp.Channel
KombusConnection: Any = pyamqp.Connection
KombusTransport: Any = pyamqp.Transport
KombusSecureTransport: Any = pyamqp.SSLTransport


class Bounded:
    """Waits for an answer of the broker, and no longer than it may take."""

    connection: Any
    events: Any
    is_closing: bool
    #: Seconds that a producer waits; None where no producer has the channel.
    patience: float | None = None

    def bound(self, seconds: float) -> None:
        """Make this a producer's channel, which waits no longer than `seconds`. It raises RecoverableConnectionError then,
        RefusedError for a message that the broker does not take, and UnroutedError for one that it gives back.
        """
        self.patience = seconds
        self.returned: list[str] = []
        self.events["basic_return"].add(self._on_returned)
        self.connection.sock.settimeout(seconds)  # once: py-amqp sets another time limit before and after each call

    def _on_returned(self, _: Any, exchange: str, key: str, __: Any) -> None:
        self.returned.append(f"exchange {exchange!r}, key {key!r}")

    def wait(self, method: Any, callback: Any = None, timeout: float | None = None, returns_tuple: bool = False) -> Any:
        """Wait for one of the methods. Raises RecoverableConnectionError, and gives the connection up, if none comes in time;
        with a `timeout` of the caller's own it raises TimeoutError, and the connection stays.
        """
        connection, wait = self.connection, super().wait  # type: ignore[misc]
        if self.patience is not None:
            return self._wait_patiently(method, callback, timeout or self.patience, returns_tuple)
        if timeout is not None or connection is None:
            return wait(method, callback, timeout, returns_tuple)
        try:
            return wait(method, callback, GOODBYE if self.is_closing else ANSWER, returns_tuple)
        except TimeoutError as error:
            connection.collect()
            raise RecoverableConnectionError("the broker has not answered in time") from error

    def _wait_patiently(self, method: Any, callback: Any, seconds: float, returns_tuple: bool) -> Any:
        connection = self.connection
        try:
            answer = super().wait(method, callback, seconds, returns_tuple)  # type: ignore[misc]
        except TimeoutError as error:
            blocked = connection is not None and connection.blocked
            alarm = "; it blocks publishers: it has a memory or disk alarm" if blocked else ""
            raise RecoverableConnectionError(f"no answer from the broker within {seconds:g} s{alarm}") from error
        except MessageNacked as error:
            raise RefusedError("the broker did not take the message: its queue is full, or cannot write it") from error
        if self.returned:  # before its confirm
            raise UnroutedError(f"no queue takes the message: {self.returned.pop()}")
        return answer

    def close(self, *args: Any, **options: Any) -> Any:
        """Close it, as py-amqp does, unless the broker does not answer: then the connection is given up."""
        connection = self.connection  # a connection is its own channel 0
        if connection and connection.asked is not None and monotonic() - connection.asked > ASKED / 2:
            return connection.collect()
        return super().close(*args, **options)  # type: ignore[misc]


class Channel(Bounded, KombusChannel):  # type: ignore[misc]
    """A channel of ENGINE=plain."""


class Connection(Bounded, KombusConnection):  # type: ignore[misc]
    """A connection of ENGINE=plain. `blocked`: the broker reads nothing from it; `asked`: when it was asked, and has not
    answered.
    """

    Channel = Channel
    blocked = False
    asked: float | None = None

    def connect(self, callback: Any = None) -> Any:
        """Connect, as py-amqp does. Where the loop rests during a task, the heartbeats go on."""
        answer = super().connect(callback)
        if self.heartbeat:
            lifeline.add(self)
        return answer

    def collect(self) -> None:
        """Let go of the connection, as py-amqp does."""
        lifeline.remove(self)
        super().collect()

    def _on_blocked(self, *args: Any) -> Any:
        self.blocked = True
        return super()._on_blocked(*args)

    def _on_unblocked(self, *args: Any) -> Any:
        self.blocked = False
        return super()._on_unblocked(*args)

    def heartbeat_tick(self, rate: float = BEATS) -> None:
        """Send a heartbeat if it is time. Raises ConnectionForced where the connection is dead."""
        if not self.heartbeat:
            return
        if _waits_to_be_read(self._transport):
            self.prev_recv = None  # to py-amqp: something was read since
        super().heartbeat_tick(BEATS)
        if fcntl:
            self._ask(monotonic())

    def _ask(self, now: float) -> None:
        """Ask a broker that is silent. Raises ConnectionForced when it does not answer."""
        if self.blocked or now - self.last_heartbeat_received < SILENCE:
            self.asked = None
        elif self.asked is None:
            consuming = (one for number, one in (self.channels or {}).items() if number and one.is_open and one.callbacks)
            if channel := next(consuming, None):
                self.asked = now
                channel.send_method(spec.Channel.Flow, "b", (True,))
        elif now - self.asked > ASKED:
            raise ConnectionForced(f"no answer for {ASKED:g} s: the connection is dead")


def _waits_to_be_read(transport: Any) -> bool:
    """Bytes have arrived. By the kernel's count, which needs neither a read nor a green library's consent."""
    sock = transport and transport.sock  # none: it has been closed
    if not fcntl or not sock or sock.fileno() < 0:
        return False
    return bool(unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])


class Transport(KombusTransport):  # type: ignore[misc]
    """kombu's. The transport option `engine` chooses its connections."""

    @property
    def Connection(self) -> Any:
        if self.client.transport_options.get("engine") != "fast":
            return Connection
        fast: Any = import_module("celery_kit.brokers.rabbitmq.fast_connection")
        return fast.Connection

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        if attach := getattr(connection, "attach", None):
            attach(loop)
        else:
            super().register_with_event_loop(connection, loop)


class SecureTransport(Transport, KombusSecureTransport):  # type: ignore[misc]
    """The same over TLS."""
