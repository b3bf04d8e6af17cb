"""Messages: names of headers and queues, what many messages are made from, and the errors of publishing one."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from kombu.exceptions import OperationalError

from celery_kit.base.correlation import SENT
from celery_kit.base.types import Headers

#: The queue, or the key, that holds the dead letters.
DEAD = "celery.dead"
#: The queue, or the key, that holds the messages of failed tasks, which are bounded in number and age.
FAILED = f"{DEAD}.failed"
#: The exchange and the queue, or the key, that say which queues are paused.
PAUSED = "celery-kit.paused"
#: The header that counts a message's earlier deliveries. RabbitMQ's name for it, which the kit uses on every broker.
DELIVERIES = "x-delivery-count"
#: The header in which a worker notes why it dead-letters a message.
NOTE = "celery-kit-dead"
#: The header of a task's signature (celery_kit/base/signing.py).
SIGNATURE = "celery-kit-signature"
#: The header of a message whose own headers cannot be decoded: why.
UNREADABLE = "celery-kit-unreadable"
#: What kombu prepends to the routing key of a message that RabbitMQ delays: the delay in seconds, in binary.
DELAY = re.compile(r"^(?:[01]\.){28}")
#: The serializers of what is signed: Celery's, for results and the spool; the kit's, for remote control and for events.
AUTH, CONTROL, EVENT = "auth", "celery-kit-control", "celery-kit-event"
#: The entry of a message's delivery_info that names its queue, where the transport notes it.
QUEUE = "celery-kit-queue"
#: The state of a task that reports its progress (celery_kit/progress.py).
PROGRESS = "PROGRESS"


def earlier(headers: object) -> int:
    """How often a message with these headers was delivered before. 0 for headers that do not say so."""
    count = headers.get(DELIVERIES) if isinstance(headers, dict) else None
    return count if type(count) is int and count > 0 else 0


def plain(text: str, kept: str = "") -> str:
    """A text of unknown origin for a terminal or a log: what would control these, or cannot be written, is escaped.

    `kept`: such characters that stay, such as a line feed.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one in kept else one.encode("unicode_escape").decode() for one in text)


class RefusedError(OperationalError):
    """The broker answered and refused the message: its queue, or the server, is full. An immediate retry would fail too."""


class UnroutedError(OperationalError):
    """The broker confirmed a message and returned it: no queue is bound for it, or none yet."""


class UnconfirmedError(OperationalError):
    """The broker has not confirmed the messages with these `ids`. Some of them may have arrived nevertheless."""

    def __init__(self, why: str, ids: Collection[str]) -> None:
        super().__init__(why)
        self.ids = ids


@dataclass(frozen=True, eq=False)
class Sample:
    """What Celery publishes a message with, beside its body: the pattern for other messages like it."""

    id: str
    priority: int | None
    content_type: str
    content_encoding: str
    headers: Headers
    properties: Headers
    exchange: str
    routing_key: str
    mandatory: bool


class Preparing(Protocol):
    """The channel of any transport, which makes messages in the transport's own form."""

    def prepare_message(
        self,
        body: bytes,
        priority: int | None,
        content_type: str,
        content_encoding: str,
        headers: Headers,
        properties: Headers,
        /,
    ) -> object: ...


class Part(NamedTuple):
    """What one message does not share with its sample. Its `id` replaces the sample's id wherever that stands in the headers.

    `sent`: its header of that name, in seconds since the epoch.
    """

    sample: Sample
    id: str
    body: bytes
    argsrepr: str
    kwargsrepr: str
    sent: float
    reply_to: str


def message_of(channel: Preparing, part: Part) -> object:
    """The message in the form that the channel's transport publishes."""
    sample = part.sample
    headers = {name: part.id if value == sample.id else value for name, value in sample.headers.items()}
    headers["argsrepr"], headers["kwargsrepr"] = part.argsrepr, part.kwargsrepr
    if SENT in headers:
        headers[SENT] = part.sent
    properties = {**sample.properties, "correlation_id": part.id, "reply_to": part.reply_to}
    return channel.prepare_message(
        part.body, sample.priority, sample.content_type, sample.content_encoding, headers, properties
    )
