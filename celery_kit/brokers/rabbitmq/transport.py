"""kombu's AMQP transport, on both engines, with a limit for every wait for the broker.

Answers. py-amqp waits without a limit for the broker's answers, for instance to a declaration, a publish or a close, in the
worker's loop too. Here a connection that does not answer in time is closed. A producer has its own time limit, and its error
has the cause. RabbitMQ does not answer publishers while it has a memory or disk alarm: it reports that once, by
connection.blocked, and py-amqp ignores it. A full queue answers with a nack. A message that no queue takes is confirmed like
any other and dropped, but a `mandatory` one is returned before its confirm. That happens to the first messages of a new queue:
if a starting worker and a producer bind it to a topic exchange at the same time, the second gets its answer before the binding
exists.

Heartbeats. py-amqp 5.4.2 closes a connection from which its loop has read nothing for two heartbeat intervals. A broker may be
silent for one, so a shorter interval would cause false alarms. py-amqp also ignores what arrives while the loop is blocked, by
a task on solo or by a busy machine: it checks before it reads again, and closes a connection that is alive. Here unread data
counts as received, and a silent broker is asked: by `channel.flow` with its current value, which the broker has to answer at
once. It is not asked while it blocks the connection, because it reads nothing then. Nor is it asked on a connection that only
sends, like that of events: nobody waits there, and TCP closes it within seconds of an unanswered write. A broker that did not
answer is not asked to close.
Several URLs. Celery begins with the first one for each connection, also with that of a node that is frozen, and waits there for
its timeout. Here a process remembers which nodes have failed, and goes to another one. A frozen node is given up sooner than a
single broker: there is another one.
Sources: amqp 5.4.2, channel.py, basic_publish_confirm, connection.py, heartbeat_tick; celery 5.7.0, worker/loops.py, asynloop;
https://www.rabbitmq.com/docs/connection-blocked. Can go when test_silence.py and test_dead_connection.py in
tests/unit/brokers/rabbitmq pass with kombu's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partialmethod
from importlib import import_module
from struct import unpack
from time import monotonic
from typing import TYPE_CHECKING

from amqp import spec
from amqp.exceptions import AccessRefused, ConnectionForced, MessageNacked, NotFound, RecoverableConnectionError
from amqp.protocol import queue_declare_ok_t
from kombu.transport import pyamqp
from kombu.utils.url import parse_url

from celery_kit.base.messages import RefusedError, UnroutedError
from celery_kit.brokers.contract import current
from celery_kit.brokers.rabbitmq.frames_in import frame_handler
from celery_kit.pools.lifeline import lifeline

try:
    import fcntl
    import termios
except ImportError:  # Windows: a dead connection is given up when py-amqp does
    fcntl = termios = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from upstream.amqp import AbstractChannel, Signature, SocketTransport
    from upstream.amqp import Channel as KombusChannel
    from upstream.amqp import Connection as KombusConnection
    from upstream.amqp import SecureTransport as KombusSecureTransport
    from upstream.amqp import Transport as KombusTransport
    from upstream.kombu_hub import Hub

    from celery_kit.base.types import Callback
else:
    AbstractChannel = object
    KombusChannel, KombusConnection = pyamqp.Channel, pyamqp.Connection
    KombusTransport, KombusSecureTransport = pyamqp.Transport, pyamqp.SSLTransport

log = logging.getLogger(__name__)
#: Seconds that the broker has for an answer, and for its answer to a close.
ANSWER, GOODBYE = 10.0, 2.0
#: Seconds of silence after which the broker is asked, and seconds that it then has for its answer; both, for one of several.
SILENCE, ASKED = 4.0, 5.0
SOONER = 2.0, 2.5
#: Seconds for which a node that has failed is tried after the others; by address, when it did, by the monotonic clock.
AVOIDED = 60.0
_failed: dict[str, float] = {}
#: Heartbeats that are sent in an interval, however often `heartbeat_tick` is called; py-amqp's own number.
BEATS = 2.0


class Bounded(AbstractChannel):
    """A mixin for py-amqp's channels and connections: limits the wait for an answer of the broker."""

    #: Seconds that a producer waits; None for a channel that is not a producer's.
    patience: float | None = None

    def bound(self, seconds: float) -> None:
        """Make this a producer's channel, which waits for `seconds` at most.

        From now on it raises RecoverableConnectionError if there is no answer in time, RefusedError for a message that the
        broker refuses, and UnroutedError for one that it returns.
        """
        self.patience = seconds
        self.returned: list[str] = []
        self.events["basic_return"].add(self._on_returned)
        self.connection.sock.settimeout(seconds)  # once: py-amqp sets another time limit before and after each call

    def _on_returned(self, _: object, exchange: str, key: str, __: object) -> None:
        self.returned.append(f"exchange {exchange!r}, key {key!r}")

    def wait(
        self,
        method: Signature | Sequence[Signature],
        callback: Callback | None = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
    ) -> object:
        """Wait for one of the methods. Raises RecoverableConnectionError, and closes the connection, if none comes in time.

        If the caller has a `timeout` (seconds), it raises TimeoutError, and the connection stays open.
        """
        connection, wait = self.connection, super().wait
        if self.patience is not None:
            seconds = timeout or self.patience
            return self.patiently(seconds, wait, method, callback, seconds, returns_tuple)
        if timeout is not None or connection is None:
            return wait(method, callback, timeout, returns_tuple)
        try:
            return wait(method, callback, GOODBYE if self.is_closing else ANSWER, returns_tuple)
        except TimeoutError as error:
            connection.failed()
            connection.collect()
            raise RecoverableConnectionError("the broker has not answered in time") from error

    def patiently(self, seconds: float, wait: Callback, *args: object) -> object:
        """Call `wait`, which waits for an answer for so many seconds. Raises the errors of a producer's channel."""
        connection = self.connection
        try:
            answer = wait(*args)
        except TimeoutError as error:
            if connection:
                connection.failed()
            blocked = connection is not None and connection.blocked
            alarm = "; it blocks publishers: it has a memory or disk alarm" if blocked else ""
            raise RecoverableConnectionError(f"no answer from the broker within {seconds:g} s{alarm}") from error
        except NotFound as error:
            if not (connection and connection.refused):
                raise
            raise UnroutedError(f"no worker has declared where the message goes: {error}") from error
        except MessageNacked as error:
            raise RefusedError("the broker refused the message: its queue is full, or cannot write it") from error
        if self.returned:  # the broker returns a message before its confirm
            raise UnroutedError(f"no queue takes the message: {self.returned.pop()}")
        return answer

    def close(self, *args: object, **options: object) -> object:
        """Close it like py-amqp, or without asking the broker if that does not answer."""
        connection = self.connection  # a connection is its own channel 0
        if connection and connection.is_silent():
            return connection.collect()
        return super().close(*args, **options)


class Declaring(Bounded):
    """A mixin for channels: a producer may have no right to declare what it sends to, which a worker has declared.

    The broker closes a channel on which it refuses something. So a producer's channel declares on another one, of the same
    connection.
    """

    #: Of a producer without a time limit.
    apart = False

    def _apart(self, method: str, *args: object, **options: object) -> queue_declare_ok_t:
        declare: Callable[..., queue_declare_ok_t] = getattr(KombusChannel, method)
        connection = self.connection
        if not (self.apart or self.patience is not None) or connection is None or options.get("passive"):
            return declare(self, *args, **options)
        if not (channel := connection.declaring) or not channel.is_open:
            channel = connection.declaring = connection.Channel(connection)
            channel.patience, channel.returned = self.patience, []
            channel.open()
        try:
            return declare(channel, *args, **options | {"nowait": False})
        except AccessRefused as error:
            connection.refused = True
            log.debug("this account may not declare it, and a worker has to: %s", error)
            return queue_declare_ok_t(str(options.get("queue") or "".join(map(str, args[:1]))), 0, 0)

    exchange_declare = partialmethod(_apart, "exchange_declare")
    exchange_bind = partialmethod(_apart, "exchange_bind")
    queue_declare = partialmethod(_apart, "queue_declare")
    queue_bind = partialmethod(_apart, "queue_bind")


class Channel(Declaring, KombusChannel):
    """A channel of ENGINE=plain."""


class Connection(Bounded, KombusConnection):
    """A connection of ENGINE=plain."""

    Channel: type = Channel

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **{"frame_handler": frame_handler} | options)

    #: The broker reads nothing from it, because of an alarm.
    blocked = False
    #: The channel that producers' channels declare on, and whether the broker has refused that.
    declaring: KombusChannel | None = None
    refused = False
    #: When the broker was asked and has not answered yet, by the monotonic clock.
    asked: float | None = None
    #: Its address, as _failed has it; when it was made, by the monotonic clock; its SILENCE and ASKED.
    address = ""
    made = 0.0
    silence = SILENCE, ASKED

    def connect(self, callback: Callback | None = None) -> object:
        """Connect like py-amqp. Heartbeats are sent even while a task blocks the loop (`celery_kit/pools/lifeline.py`)."""
        answer = super().connect(callback)
        if self.heartbeat:
            lifeline.add(self)
        return answer

    def failed(self) -> None:
        """Have this process avoid the node, if there are others."""
        _failed[self.address] = monotonic()

    def is_silent(self) -> bool:
        """Whether the broker is late with its answer, or has failed this process since the connection was made."""
        late = self.asked is not None and monotonic() - self.asked > self.silence[1] / 2
        return late or (bool(self.address) and _failed.get(self.address, 0.0) > self.made)

    def collect(self) -> None:
        """Close the socket without asking the broker, like py-amqp."""
        if self.address and self._transport and not self._transport.connected:  # it was found closed, or broken
            self.failed()
        lifeline.remove(self)
        super().collect()

    def _on_blocked(self, *args: object) -> object:
        self.blocked = True
        return super()._on_blocked(*args)

    def _on_unblocked(self, *args: object) -> object:
        self.blocked = False
        return super()._on_unblocked(*args)

    def heartbeat_tick(self, rate: float = BEATS) -> None:
        """Send a heartbeat if one is due. Raises ConnectionForced if the connection is dead."""
        if not self.heartbeat:
            return
        if _waits_to_be_read(self._transport):
            self.prev_recv = None  # so that py-amqp sees that something was received
        super().heartbeat_tick(BEATS)
        if fcntl:
            self._ask(monotonic())

    def _ask(self, now: float) -> None:
        """Ask a silent broker for an answer. Raises ConnectionForced if none comes."""
        silence, patience = self.silence
        if self.blocked or now - self.last_heartbeat_received < silence:
            self.asked = None
        elif self.asked is None:
            consuming = (one for number, one in (self.channels or {}).items() if number and one.is_open and one.callbacks)
            if channel := next(consuming, None):
                self.asked = now
                channel.send_method(spec.Channel.Flow, "b", (True,))
        elif now - self.asked > patience:
            self.failed()
            raise ConnectionForced(f"no answer for {patience:g} s: the connection is dead")


def _waits_to_be_read(transport: SocketTransport | None) -> bool:
    """Whether unread bytes have arrived, by the kernel's count, which a green library does not intercept."""
    sock = transport and transport.sock  # None if it is closed
    if not fcntl or not sock or sock.fileno() < 0:
        return False
    return bool(unpack("i", fcntl.ioctl(sock.fileno(), termios.FIONREAD, b"\0" * 4))[0])


class Transport(KombusTransport):
    """kombu's transport. The transport option `engine` chooses the class of its connections."""

    def establish_connection(self) -> KombusConnection:
        """Connect, to another of several URLs if that node has failed lately, with the account that its file has now, if it was
        read from one.
        """
        client = self.client
        if several := len(client.alt) > 1:
            self._avoid_the_failed()
        client.userid, client.password = current(client.userid, client.password)
        address = self._address(client.hostname, client.port)
        try:
            made = super().establish_connection()
        except BaseException:
            _failed[address] = monotonic()
            raise
        vars(made).update(address=address, made=monotonic(), **{"silence": SOONER} if several else {})
        return made

    def _address(self, host: str | None, port: int | None) -> str:
        return f"{host}:{port or (self.default_ssl_port if self.client.ssl else self.default_port)}"

    def _avoid_the_failed(self) -> None:
        """Choose the first URL whose node has not failed lately, or else the one that did so first, if that of now has."""
        client, since = self.client, monotonic() - AVOIDED
        if _failed.get(self._address(client.hostname, client.port), 0.0) < since:
            return
        urls = [parse_url(url) if "://" in url else {"hostname": url} for url in client.alt]
        if any(url.get("transport", client.transport_cls) != client.transport_cls for url in urls):
            return  # brokers of different kinds

        places = [self._address(url["hostname"], url.get("port")) for url in urls]
        lately = [one if (one := _failed.get(place, 0.0)) >= since else 0.0 for place in places]
        chosen = urls[lately.index(min(lately))]
        for name in ("hostname", "port", "userid", "password", "virtual_host", "ssl"):
            if name in chosen:
                setattr(client, name, chosen[name])
        client.declared_entities.clear()

    @property
    def Connection(self) -> type[KombusConnection]:
        """The class of its connections."""
        if self.client.transport_options.get("engine") != "fast":
            return Connection
        fast = import_module("celery_kit.brokers.rabbitmq.fast_connection")  # which imports this module
        kind: type[KombusConnection] = fast.Connection
        return kind

    def register_with_event_loop(self, connection: KombusConnection, loop: Hub) -> None:
        """Have the worker's `loop` handle what arrives."""
        if attach := getattr(connection, "attach", None):
            attach(loop)
        else:
            super().register_with_event_loop(connection, loop)


class SecureTransport(Transport, KombusSecureTransport):
    """The same over TLS. A URL may have the parameters that kombu reads from Redis's: `amqps://…?ssl_ca_certs=/ca.pem`."""

    def establish_connection(self) -> KombusConnection:
        """Connect. What the URL says of TLS is put in py-amqp's words, which Celery's setting broker_use_ssl has too."""
        given = self.client.ssl
        if isinstance(given, dict):
            options = {name.removeprefix("ssl_"): value for name, value in given.items()}
            if options.pop("check_hostname", False):
                options.setdefault("server_hostname", None)  # kombu puts the host's name there
            self.client.ssl = options
        return super().establish_connection()
