"""Failed tasks on RabbitMQ: a quorum queue beside that of the dead letters. Sends back messages of both.

Its bounds are a user's settings, so they cannot be arguments of the queue: workers drop the oldest messages, and each message
expires on its own. AMQP's transactions store many messages by one round trip, and send one back and remove its letter in one
step: a client that is killed before the commit has done nothing, after it all.
Source: https://www.rabbitmq.com/docs/semantics; https://www.rabbitmq.com/docs/ttl#per-message-ttl-in-publishers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from amqp.serialization import dumps
from kombu.exceptions import OperationalError

from celery_kit.base.messages import DELIVERIES, FAILED, NOTE
from celery_kit.brokers.contract import REPLAYED

if TYPE_CHECKING:
    from celery import Celery
    from upstream.amqp import Channel

    from celery_kit.base.signing import Signer
    from celery_kit.base.types import Connection, Headers, Message
    from celery_kit.brokers.contract import Action, DeadLetter

#: The most bytes of a dead letter's headers: a frame of RabbitMQ's has 128 KiB, and the broker adds some of its own.
MOST_HEADERS = 100_000
#: The header that names the headers that did not fit.
LEFT_OUT = "celery-kit-left-out"
#: The prefixes of headers that a dead letter loses when it is sent back to its queue.
OURS = (NOTE, LEFT_OUT, DELIVERIES, "x-death", "x-first-death-", "x-last-death-")
#: Properties that a message does not share with its dead letter, which must not expire earlier, or are given on their own.
OWN = ("application_headers", "content_encoding", "content_type", "expiration")
#: The share of the bound by which there may be more, until a worker looks again.
SLACK = 0.01


@dataclass(frozen=True)
class DeadMessage:
    """A message that is a dead letter, as it was read from the queue `home`."""

    home: str
    message: Message
    letter: DeadLetter


def body_of(message: Message) -> bytes:
    """A body as it was sent. py-amqp decodes it if it can; Python may not know the encoding's name."""
    body = message.body
    if not isinstance(body, str):
        return bytes(body)
    try:
        return body.encode(message.content_encoding or "utf-8")
    except (LookupError, ValueError):
        return body.encode("utf-8", "surrogatepass")


def properties_of(message: Message) -> Headers:
    """The properties of a message that one like it has too."""
    return {name: value for name, value in message.properties.items() if name not in OWN}


def noted(message: Message, letter: DeadLetter) -> Headers:
    """The headers of a message, with its letter."""
    headers = {**message.headers, NOTE: asdict(letter)}
    if not message.errors:
        headers.pop("compression", None)  # kombu has decompressed the body
    return fitting(headers)


def fitting(headers: Headers) -> Headers:
    """The headers that fit one frame with the letter: of others the largest are left out, and their names noted."""
    try:
        sizes = {name: len(name) + _size(value) for name, value in headers.items()}
    except Exception:  # AMQP has no form for one of them, or it is nested too deep to be written again
        return {NOTE: headers[NOTE], LEFT_OUT: "all"}
    left_out: list[str] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if sum(sizes.values()) <= MOST_HEADERS:
            break
        if name != NOTE:
            left_out.append(name[:100])
            headers.pop(name)
            sizes.pop(name)
    return headers | {LEFT_OUT: ", ".join(left_out)[:1_000]} if left_out else headers


def _size(value: object) -> int:
    """The bytes that a header's value takes, roughly. Raises an error for one that AMQP has no form for."""
    if isinstance(value, int | float | None):
        return 9
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(dumps("F", ({"": value},)))


def _publish(channel: Channel, message: Message, queue: str, headers: Headers, **more: object) -> None:
    """Publish one like `message` to a queue, as part of the channel's transaction."""
    properties = properties_of(message) | more
    made = channel.prepare_message(
        body_of(message),
        properties.pop("priority", None),
        content_type=message.content_type or "application/data",
        content_encoding=message.content_encoding,
        headers=headers,
        properties=properties,
    )
    channel._basic_publish(made, "", queue, mandatory=True)  # it is returned if there is no such queue


class Transaction:
    """A channel in a transaction, and the queues that have returned messages."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.returned: set[str] = set()
        channel.events["basic_return"].add(self._note)
        channel.tx_select()

    def _note(self, _: object, __: str, queue: str, ___: object) -> None:
        self.returned.add(queue)

    def commit(self) -> set[str]:
        """Commit what was published and acknowledged. Returns the queues that were not there, and takes their messages."""
        self.channel.tx_commit()
        returned = set(self.returned)
        self.returned.clear()
        return returned


class RabbitmqFailedTasks:
    """See FailedTasks."""

    def __init__(self, app: Celery, channel: Channel, other: Channel) -> None:
        self._most, self._milliseconds = int(app.conf.failed_most), str(1_000 * int(app.conf.failed_expires))
        self._plain, self._transaction = channel, Transaction(other)
        self._unseen = self._most  # how many were stored since it looked how many there are: it looks soon

    def put(self, several: Sequence[tuple[Message, DeadLetter]]) -> None:
        """Publish messages in one transaction. Raises the errors of a channel, and OperationalError if the queue is gone."""
        for message, letter in several:
            headers = noted(message, letter)
            _publish(self._transaction.channel, message, FAILED, headers, expiration=self._milliseconds)
        if self._transaction.commit():
            raise OperationalError(f"the queue {FAILED} is gone")
        self._unseen += len(several)
        if self._unseen > self._most * SLACK:
            self._trim()

    def _trim(self) -> None:
        self._unseen = 0
        surplus = self._plain.queue_declare(FAILED, passive=True).message_count - self._most
        while surplus > 0 and self._plain.basic_get(FAILED, no_ack=True):
            surplus -= 1

    def close(self) -> None:
        """Close the channels."""
        for channel in (self._transaction.channel, self._plain):
            with suppress(Exception):  # the connection is lost
                channel.close()


def is_there(connection: Connection, queue: str) -> bool:
    """Whether there is a queue of this name. Raises the connection's errors."""
    channel: Channel = connection.channel()
    try:
        channel.queue_declare(queue, passive=True)
    except connection.channel_errors:  # the channel is closed
        return False
    channel.close()
    return True


def finish(
    connection: Connection,
    transaction: Transaction,
    several: Sequence[tuple[Action, DeadMessage]],
    signer: Signer | None = None,
) -> str:
    """Send messages back, or drop them, in one transaction. Returns why some were not sent back; these stay dead letters.

    `signer`: signs those again whose signatures held.

    Raises OperationalError if the broker refuses the messages, for instance because their queue is full. They stay too.
    """
    channel = transaction.channel
    back = [one for action, one in several if action == "retry"]
    gone = {queue for queue in {one.letter.queue for one in back} if not queue or not is_there(connection, queue)}
    fine = [one for one in back if one.letter.queue not in gone]
    for one in fine:
        renewed = signer.renewed(one.message) if signer and one.letter.reason != REPLAYED else one.message.headers
        headers = {name: value for name, value in renewed.items() if not name.startswith(OURS)}
        _publish(channel, one.message, one.letter.queue, headers)
    for one in [*fine, *(one for action, one in several if action == "drop")]:
        one.message.ack()
    try:
        returned = transaction.commit()
    except connection.channel_errors as error:  # the broker has acknowledged their letters nevertheless
        _put_back(connection, fine)
        raise OperationalError(f"the broker refuses messages of {fine[0].letter.queue if fine else FAILED}: {error}") from error
    _put_back(connection, [one for one in fine if one.letter.queue in returned])
    lost = sorted(gone | returned)
    return f"there is no queue {', '.join(map(repr, lost))}" if lost else ""


def _put_back(connection: Connection, several: Sequence[DeadMessage]) -> None:
    if several:
        channel: Channel = connection.channel()
        transaction = Transaction(channel)
        for one in several:
            _publish(channel, one.message, one.home, noted(one.message, one.letter))
        transaction.commit()
        channel.close()
