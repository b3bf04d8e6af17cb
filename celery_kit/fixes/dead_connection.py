"""A worker learns late that its connection to RabbitMQ is dead, or takes one that lives for dead.

py-amqp 5.4.2 gives a connection up when its loop has read nothing for two heartbeat intervals. A broker may well be silent for
one, so a shorter interval would only trade the wait for false alarms. And what has arrived while the loop was held up, by a
task on solo or by a busy machine, counts as nothing: the first look afterwards comes before the first read, and ends a
connection that lives. Source: amqp 5.4.2, connection.py, heartbeat_tick; celery 5.7.0, worker/loops.py, asynloop.

Closed by counting what waits to be read, and by asking a broker that says nothing: `channel.flow` with what is so already, to
which it has to answer at once. Not while it has blocked the connection: it reads nothing from it then. Nor on one that only
sends, as the one for events: nobody waits there, and TCP gives it up within seconds of what it has sent in vain. And one that
does not answer is not told goodbye: py-amqp waits for its answer to that without an end. Can go when
tests/unit/fixes/test_dead_connection.py passes without it.
"""

from importlib import import_module
from struct import unpack
from time import monotonic
from typing import Any

from celery_kit.base.signals import celeryd_init

try:
    import fcntl
    import termios
except ImportError:  # Windows: the connection is given up as py-amqp does
    fcntl = termios = None  # type: ignore[assignment]

#: Seconds of silence after which the broker is asked, and that it has for its answer.
SILENCE, ANSWER = 4.0, 5.0
#: Heartbeats that go out in an interval, however often somebody looks; py-amqp's own.
BEATS = 2.0


def connect() -> None:
    """Have every worker look in this way."""
    if fcntl:
        celeryd_init.connect(_patch, weak=False)


def _patch(**_: Any) -> None:
    """Patch py-amqp's connections, once."""
    amqp: Any = import_module("amqp.connection")  # only in workers
    kind = amqp.Connection
    if hasattr(kind, "asked"):
        return
    kind.blocked, kind.asked = False, None
    kind._on_blocked = _noting(kind._on_blocked, True)
    kind._on_unblocked = _noting(kind._on_unblocked, False)
    kind.heartbeat_tick = _looking(kind.heartbeat_tick)
    kind.close, amqp.Channel.close = _parting(kind.close), _parting(amqp.Channel.close)


def _noting(celerys: Any, blocked: bool) -> Any:
    def note(self: Any, *args: Any) -> Any:
        self.blocked = blocked
        return celerys(self, *args)

    return note


def _looking(celerys: Any) -> Any:
    def heartbeat_tick(self: Any, rate: float = BEATS) -> None:
        """Send a heartbeat if it is time. Raises ConnectionForced where the connection is dead."""
        if not self.heartbeat:
            return
        if _waits_to_be_read(self._transport):
            self.prev_recv = None  # to py-amqp: something was read since
        celerys(self, BEATS)
        _ask(self, monotonic())

    return heartbeat_tick


def _parting(celerys: Any) -> Any:
    def close(self: Any, *args: Any, **options: Any) -> Any:
        """No goodbye to a broker that does not answer: it would be waited for."""
        connection = self.connection  # a connection is its own channel 0
        if connection and connection.asked is not None and monotonic() - connection.asked > ANSWER / 2:
            return connection.collect()
        return celerys(self, *args, **options)

    return close


def _ask(self: Any, now: float) -> None:
    """Ask a broker that has said nothing. Raises ConnectionForced when it does not answer."""
    if self.blocked or now - self.last_heartbeat_received < SILENCE:
        self.asked = None
    elif self.asked is None:
        amqp: Any = import_module("amqp.spec")
        consuming = (one for number, one in (self.channels or {}).items() if number and one.is_open and one.callbacks)
        if channel := next(consuming, None):
            self.asked = now
            channel.send_method(amqp.Channel.Flow, "b", (True,))
    elif now - self.asked > ANSWER:
        errors: Any = import_module("amqp.exceptions")
        raise errors.ConnectionForced(f"no answer for {ANSWER:g} s: the connection is dead")


def _waits_to_be_read(transport: Any) -> bool:
    """Bytes have arrived. By the kernel's count, which needs neither a read nor a green library's consent."""
    sock = transport and transport.sock  # none: it has been closed
    return bool(sock and sock.fileno() >= 0 and unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])
