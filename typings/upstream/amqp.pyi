"""amqp 5.4.2, and the classes that kombu 5.7.0 makes of them (transport/pyamqp.py)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from socket import socket
from typing import Any

from amqp.protocol import queue_declare_ok_t
from upstream.kombu_hub import Hub

Signature = tuple[int, int]

class Message:
    """amqp.basic_message.Message. kombu makes its own kind of message from it."""

    body: Any
    properties: dict[str, Any]
    delivery_tag: int

    def __init__(self, body: bytes | str = "", **properties: object) -> None: ...
    def _serialize_properties(self) -> bytes: ...

class SocketTransport:
    """amqp.transport._AbstractTransport."""

    connected: bool
    #: None when it is closed.
    sock: Any
    _write: Callable[[bytes], object]

    def __init__(self, host: str, connect_timeout: float | None = None, **options: object) -> None: ...
    def _setup_transport(self) -> None: ...
    def read_frame(self, unpack: Callable[..., object] | None = None) -> tuple[int, int, bytes]: ...
    def write(self, s: bytes) -> None: ...
    def having_timeout(self, timeout: float | None) -> AbstractContextManager[object]: ...

class TCPTransport(SocketTransport): ...
class SSLTransport(SocketTransport): ...

class AbstractChannel:
    """What a channel and a connection have in common: a connection is its own channel 0."""

    channel_id: int
    #: None when it is closed.
    connection: Any
    is_closing: bool
    auto_decode: bool
    #: Handlers of events, by their name.
    events: dict[str, set[Callable[..., object]]]
    #: By method, what waits for it.
    _pending: dict[Signature, object]

    def __init__(self, connection: object, *args: object, **options: object) -> None: ...
    def wait(
        self,
        method: Signature | Sequence[Signature],
        callback: Callable[..., object] | None = None,
        timeout: float | None = None,
        returns_tuple: bool = False,
    ) -> Any: ...
    def dispatch_method(self, method_sig: Signature, payload: bytes, content: Message) -> None: ...
    def send_method(self, sig: Signature, format: str | None = None, args: Sequence[object] | None = None) -> object: ...
    def collect(self) -> None: ...
    def close(self, *args: object, **options: object) -> object: ...

class Channel(AbstractChannel):
    is_open: bool
    callbacks: dict[str, Callable[..., object]]
    no_ack_consumers: set[str]
    _confirm_selected: bool

    def _on_open_ok(self) -> None: ...
    def _on_basic_deliver(
        self, consumer_tag: str, delivery_tag: int, redelivered: bool, exchange: str, routing_key: str, msg: Message
    ) -> None: ...
    def _on_get_ok(self, delivery_tag: int, *rest: object) -> object: ...
    def _remove_tag(self, consumer_tag: str) -> object: ...
    def confirm_select(self, nowait: bool = False) -> object: ...
    def prepare_message(
        self,
        body: bytes | str,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, object] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> Message: ...
    def message_to_python(self, raw_message: Message) -> Any: ...
    def queue_declare(self, queue: str = "", *args: object, **options: object) -> queue_declare_ok_t: ...
    def basic_qos(self, prefetch_size: int, prefetch_count: int, a_global: bool, argsig: str = "lBb") -> object: ...
    def basic_consume(self, queue: str = "", consumer_tag: str = "", *args: object, **options: object) -> str: ...
    def basic_cancel(self, consumer_tag: str, nowait: bool = False, argsig: str = "sb") -> object: ...
    def basic_get(self, queue: str = "", no_ack: bool = False, argsig: str = "Bsb") -> Message | None: ...
    def basic_ack(self, delivery_tag: int, multiple: bool = False, argsig: str = "Lb") -> None: ...
    def basic_reject(self, delivery_tag: int, requeue: bool, argsig: str = "Lb") -> None: ...
    def tx_select(self) -> object: ...
    def tx_commit(self) -> object: ...
    def basic_recover(self, requeue: bool = False) -> object: ...
    def basic_publish(self, msg: object, exchange: str, routing_key: str, **options: object) -> object: ...
    def _basic_publish(
        self, msg: object, exchange: str = "", routing_key: str = "", mandatory: bool = False, *, timeout: float | None = None
    ) -> object: ...

class Connection(AbstractChannel):
    #: The connection's own class.
    Channel: type
    #: By number, with the connection itself as 0; None when it is closed.
    channels: Any
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    server_properties: dict[str, Any]
    frame_max: int
    bytes_recv: int
    bytes_sent: int
    #: Seconds; 0 without heartbeats.
    heartbeat: float
    last_heartbeat_received: float
    last_heartbeat_sent: float
    frame_writer: Callable[..., object]
    #: How much was received at the last tick.
    prev_recv: int | None
    #: None when it is closed.
    _transport: Any

    def __init__(self, *args: object, **options: object) -> None: ...
    def send_heartbeat(self) -> None: ...
    @property
    def connected(self) -> bool: ...
    @property
    def transport(self) -> Any: ...
    @property
    def sock(self) -> socket: ...
    @property
    def on_inbound_frame(self) -> Callable[[tuple[int, int, bytes]], object]: ...
    def Transport(
        self,
        host: str,
        connect_timeout: float | None,
        ssl: Mapping[str, object] | bool = False,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
        **options: object,
    ) -> object: ...
    def channel(self) -> Any: ...
    def connect(self, callback: Callable[..., object] | None = None) -> object: ...
    def drain_events(self, timeout: float | None = None) -> object: ...
    def heartbeat_tick(self, rate: float = 2.0) -> None: ...
    def _on_blocked(self, *args: object) -> object: ...
    def _on_unblocked(self, *args: object) -> object: ...

class Transport:
    """kombu.transport.pyamqp.Transport."""

    client: Any
    connection_errors: tuple[type[Exception], ...]

    def register_with_event_loop(self, connection: Connection, loop: Hub) -> None: ...

class SecureTransport(Transport):
    """kombu.transport.pyamqp.SSLTransport."""
