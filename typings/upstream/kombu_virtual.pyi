"""kombu 5.7.0, transport/virtual/base.py."""

from collections.abc import Mapping, Sequence
from typing import Any

class QoS:
    #: The transport's own class of channels.
    channel: Any
    prefetch_count: int
    #: By delivery tag, what was delivered, and the tags of those that are acknowledged and not removed yet.
    _delivered: dict[str, Message]
    _dirty: set[str]

    def can_consume(self) -> bool: ...
    def append(self, message: Message, delivery_tag: str) -> None: ...
    def ack(self, delivery_tag: str) -> None: ...
    def reject(self, delivery_tag: str, requeue: bool = False) -> None: ...
    def restore_unacked_once(self, stderr: object = None) -> None: ...

class Message:
    #: As it was received.
    _raw: dict[str, Any]
    body: bytes | str
    headers: dict[str, Any]
    properties: dict[str, Any]
    delivery_info: dict[str, Any]
    delivery_tag: str
    channel: Any

    def __init__(self, payload: Mapping[str, Any], channel: object = None, **options: object) -> None: ...

class BrokerState:
    exchanges: dict[str, dict[str, Any]]

class ExchangeType:
    type: str

class Cycle:
    """kombu.utils.scheduling.FairCycle: the queues in the order in which they are read."""

    def consume(self, n: int) -> list[str]: ...
    def rotate(self, last_used: str) -> list[str]: ...

class Channel:
    closed: bool
    _closing: bool
    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]
    from_transport_options: tuple[str, ...]

    def __init__(self, connection: object, **options: object) -> None: ...
    def basic_consume(self, queue: str, no_ack: bool = False, *args: object, **options: object) -> object: ...
    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, _publish_batch: Any = None, **options: object
    ) -> object: ...
    def prepare_message(
        self,
        body: bytes | str,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: Mapping[str, object] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> dict[str, Any]: ...
    @property
    def state(self) -> BrokerState: ...
    def typeof(self, exchange: str, default: str = "direct") -> ExchangeType: ...
    def _basic_cancel(self, consumer_tag: str) -> object: ...
    def _lookup(self, exchange: str, routing_key: str) -> Sequence[str]: ...
    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None: ...
    def _get_message_priority(self, message: dict[str, Any], reverse: bool = False) -> int: ...
    def close(self) -> None: ...
