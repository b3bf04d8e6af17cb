"""What is said of a message wherever it is looked at: names of headers and queues, samples, why it was not taken."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from kombu.exceptions import OperationalError

from celery_kit.base.correlation import SENT

#: The queue, or the key, that holds what was set aside.
DEAD = "celery.dead"
#: The header that counts how often a message came back; RabbitMQ's own name for it, which the kit uses on every broker.
DELIVERIES = "x-delivery-count"
#: Where the worker writes what it knows of a message that it sets aside, in its headers.
NOTE = "celery-kit-dead"
#: The state of a task that says how far it is (celery_kit/progress.py).
PROGRESS = "PROGRESS"


class RefusedError(OperationalError):
    """The broker answered, and did not take the message: a full queue, or a server that has no room. Trying again is no use."""


class UnroutedError(OperationalError):
    """The broker has confirmed a message, and given it back: there is no queue for it, or none yet."""


class UnconfirmedError(OperationalError):
    """Messages that the broker has not confirmed: `ids`. Any of them may have arrived all the same."""

    def __init__(self, why: str, ids: Collection[str]) -> None:
        super().__init__(why)
        self.ids = ids


@dataclass(frozen=True, eq=False)
class Sample:
    """A message just as Celery publishes it, its body serialized, to make others like it from."""

    id: str
    body: bytes
    priority: int | None
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    properties: dict[str, Any]
    exchange: str
    routing_key: str
    mandatory: bool


class Part(NamedTuple):
    """What a message has of its own; all else is its sample's. An id that stands in the sample becomes this one.

    `sent`: its header of that name, in seconds since the epoch.
    """

    sample: Sample
    id: str
    body: bytes
    argsrepr: str
    kwargsrepr: str
    sent: float
    reply_to: str


def message_of(channel: Any, part: Part) -> Any:
    """The message, as a channel of kombu's makes it."""
    sample = part.sample
    headers = {name: part.id if value == sample.id else value for name, value in sample.headers.items()}
    headers["argsrepr"], headers["kwargsrepr"] = part.argsrepr, part.kwargsrepr
    if SENT in headers:
        headers[SENT] = part.sent
    properties = {**sample.properties, "correlation_id": part.id, "reply_to": part.reply_to}
    return channel.prepare_message(
        part.body, sample.priority, sample.content_type, sample.content_encoding, headers, properties
    )
