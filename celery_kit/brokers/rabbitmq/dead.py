"""Dead letters on RabbitMQ: a quorum queue, to which workers and the broker itself publish.

Every quorum queue of the app names :data:`DEAD` as its dead-letter exchange. By it the broker dead-letters what a worker
rejects, and what was redelivered more often than any worker allows: a message that kills the worker before it is handled.
The queues' arguments name the exchange. A policy would need an administrator's rights on the broker, and without one a task
would be dropped silently. Arguments cannot change after a queue is declared (406), so none of them depends on a user's setting.

Tasks that expired are not dead letters. The exchange routes by the reason, and copies of them go to a queue from which workers
store their state (`expired.py`). It routes by the reason of the last death: the queues that delay a task have let it expire
before.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

from celery.app import amqp
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_kit.base.messages import DEAD, DELAY, DELIVERIES, NOTE
from celery_kit.base.versions import command
from celery_kit.brokers.contract import Action, DeadLetter, moment, unreadable

if TYPE_CHECKING:
    from celery import Celery
    from upstream.amqp import Channel

    from celery_kit.base.types import Headers, Message

#: RabbitMQ 4's own limit. It is declared, so that a broker with another default counts the same.
BROKER_LIMIT = 20

WITH_DEAD_LETTERS = {
    "x-delivery-limit": BROKER_LIMIT,
    "x-dead-letter-exchange": DEAD,
    # Without these two, a dead letter that the broker cannot route at once is lost
    # (https://www.rabbitmq.com/docs/4.0/quorum-queues#activating-at-least-once-dead-lettering).
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
#: The queue of copies of expired tasks, and its limits: while no worker consumes it, it holds the latest.
EXPIRED = f"{DEAD}.revoked"
LIMITS = {"x-max-length": 100_000, "x-max-length-bytes": 64 * 1024 * 1024}
#: The classes of AMQP's methods that declare: exchange, queue.
DECLARING = (40, 50)
#: The prefixes of headers that a dead letter loses when it is sent back to its queue.
OURS = (NOTE, DELIVERIES, "x-death", "x-first-death-", "x-last-death-")
REASONS = {"delivery_limit": "delivered too often (the broker's count)", "rejected": "rejected by its task, without requeue"}


def _bound(name: str, reason: str, arguments: Mapping[str, object]) -> Queue:
    match = {"x-match": "any-with-x", "x-last-death-reason": reason}
    exchange = Exchange(DEAD, "headers", durable=True)
    return Queue(name, exchange, durable=True, queue_arguments=dict(arguments), binding_arguments=match)


QUEUES = [
    # Without a limit: reading a letter counts as a delivery.
    *(_bound(DEAD, reason, {"x-queue-type": "quorum", "x-delivery-limit": -1}) for reason in REASONS),
    (REVOKED := _bound(EXPIRED, "expired", LIMITS)),
]


class Queues(amqp.Queues):
    """Celery's table of queues. Every quorum queue in it names the dead-letter exchange, the user's own queues too.

    A queue without a type gets the type of the setting for missing queues. Producers and workers must declare a queue with the
    same arguments, whichever of them creates it.
    """

    create_missing_queue_type: str  # the stubs lack it

    def __setitem__(self, name: str, queue: Queue) -> None:
        if self.create_missing_queue_type == "quorum" and _may_be_quorum(queue):
            queue.queue_arguments = {**(queue.queue_arguments or {}), "x-queue-type": "quorum"}
        if queue.queue_arguments and queue.queue_arguments.get("x-queue-type") == "quorum":
            queue.queue_arguments = WITH_DEAD_LETTERS | queue.queue_arguments
        super().__setitem__(name, queue)


def _may_be_quorum(queue: Queue) -> bool:
    """Whether the queue has no type, and no feature that only classic queues have.
    https://www.rabbitmq.com/docs/quorum-queues#feature-matrix
    """
    classic = {"x-queue-type", "x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"}
    transient = queue.exclusive or queue.auto_delete or not queue.durable
    return not (transient or getattr(queue, "max_priority", None) or classic & set(queue.queue_arguments or ()))


#: The broker's answer to a declaration that differs from what is declared already; the remedies, by what is declared.
UNLIKE = re.compile(r"PRECONDITION_FAILED - inequivalent arg '(?P<what>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']*)'")
REMEDIES = {
    "queue": "describe it in task_queues as it is, as in Queue('{name}', queue_arguments={{'x-queue-type': 'classic'}}), "
    "delete it while it is empty, or give the kit a virtual host of its own (docs/migration.md)",
    "exchange": "describe it in task_queues as it is, as in Queue('{name}', Exchange('{name}', 'direct')), delete it, "
    "or give the kit a virtual host of its own (docs/migration.md)",
    "": f"correct what declares it, or the account's rights; '{command('doctor')}' looks at the broker",
}


def explain(error: BaseException) -> str | None:
    """One line on the broker's answer to a declaration, with the remedy. None for any other error."""
    method, text = getattr(error, "method_sig", None), getattr(error, "reply_text", None)
    if not text or not method or method[0] not in DECLARING:
        return None
    found = UNLIKE.search(text)
    about = found.groupdict() if found else {"kind": "", "name": ""}
    what = f"the {found['kind']} {found['name']!r} is there already, with other arguments: {text}" if found else text
    return f"RabbitMQ refuses what the app declares: {what}; {REMEDIES[about['kind']].format(**about)}"


class RabbitmqDeadLetters:
    """See DeadLetters."""

    def prepare(self, app: Celery) -> None:
        """Declare the queues of dead letters and of expired tasks. Raises the connection's errors."""
        with app.connection_for_read() as connection:
            *first, last = (queue(connection.default_channel) for queue in QUEUES)
            for queue in first:  # a worker's start waits for three answers, not for nine; the last one also reports errors
                queue.declare(nowait=True)
            last.declare()

    def put(self, app: Celery, message: Message, letter: DeadLetter) -> None:
        """Publish a message to the queue of dead letters. Raises OperationalError."""
        headers = {**message.headers, NOTE: asdict(letter)}
        if not message.errors:
            headers.pop("compression", None)  # kombu has decompressed the body
        self._publish(app, message, DEAD, headers)

    def queue_of(self, message: Message, by_tag: Mapping[str, str]) -> str:
        """The queue that a message came from: the consumer's, or else by its routing key."""
        info = message.delivery_info
        return by_tag.get(info.get("consumer_tag", "")) or DELAY.sub("", info.get("routing_key") or "")

    def each(self, app: Celery, decide: Callable[[DeadLetter], Action]) -> None:
        """Call `decide` for every letter and do what it returns. Raises OperationalError at the end if one cannot be sent
        back.
        """
        with app.connection_for_read() as connection, connection.channel() as opened:
            channel = cast("Channel", opened)
            QUEUES[0](opened).declare()
            # Until the queue is empty, not as many as the broker counts: a slow broker counts none (rabbit_quorum_queue:stat).
            again: list[tuple[Message, DeadLetter]] = []
            while found := channel.basic_get(DEAD):
                message = channel.message_to_python(found)  # Queue.get would raise the errors of a message
                letter = _letter(message)
                action = decide(letter)
                if action == "retry":
                    again.append((message, letter))  # sent later: if it is dead-lettered again, it must not be read here again
                elif action == "drop":
                    message.ack()
            failed: OperationalError | None = None
            for message, letter in again:
                headers = {name: value for name, value in message.headers.items() if not name.startswith(OURS)}
                try:
                    self._publish(app, message, letter.queue, headers)
                except OperationalError as error:  # for instance, its queue was deleted
                    failed = error
                else:
                    message.ack()
            # The letters that stay are requeued before this returns. Otherwise the broker would do it some time after the
            # channel is closed, and the next reader would not see them.
            channel.basic_recover(requeue=True)
            channel.queue_declare(DEAD, passive=True)
            if failed:
                raise failed

    def _publish(self, app: Celery, message: Message, queue: str, headers: Headers) -> None:
        """Publish to a queue by the default exchange. The broker has confirmed the message when this returns."""
        given = {
            k: v for k, v in message.properties.items() if k not in ("application_headers", "content_encoding", "expiration")
        }
        with app.producer_or_acquire() as producer:
            producer.publish(
                _bytes(message.body, message.content_encoding),
                exchange="",
                routing_key=queue,
                headers=headers,
                mandatory=True,  # raises an error if there is no such queue; otherwise the message would be lost
                retry=True,
                retry_policy={"max_retries": 3},
                **{**given, "content_type": message.content_type or "application/data"},
                content_encoding=message.content_encoding,
            )


def _bytes(body: bytes | str, encoding: str | None) -> bytes:
    """A body as it was sent. py-amqp decodes it if it can; Python may not know the encoding's name."""
    if not isinstance(body, str):
        return bytes(body)
    try:
        return body.encode(encoding or "utf-8")
    except LookupError:
        return body.encode()


def _letter(message: Message) -> DeadLetter:
    """The letter of a message in the queue, to which anybody can publish anything."""
    try:
        return _noted(message)
    except (LookupError, TypeError) as error:
        name = str(message.properties.get("correlation_id") or message.delivery_tag)
        return unreadable(name, error, moment())


def _noted(message: Message) -> DeadLetter:
    """The letter that a worker noted in a header, or one made of the broker's own header."""
    if NOTE in message.headers:
        return DeadLetter(**message.headers[NOTE])
    death = message.headers["x-death"][0]
    when = death["time"].replace(tzinfo=UTC) if isinstance(death["time"], datetime) else None
    return DeadLetter(
        id=str(message.headers.get("id") or message.properties.get("correlation_id") or ""),
        task=str(message.headers.get("task") or ""),
        queue=death["queue"],
        reason=REASONS.get(death["reason"], death["reason"]),
        when=moment(when),
        deliveries=BROKER_LIMIT + 1 if death["reason"] == "delivery_limit" else message.headers.get(DELIVERIES, 0) + 1,
    )
