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
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import TYPE_CHECKING, cast

from celery.app import amqp
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_kit.base import security
from celery_kit.base.messages import DEAD, DELAY, DELIVERIES, FAILED, NOTE
from celery_kit.base.versions import command
from celery_kit.brokers.contract import Action, DeadLetter, letter_from, moment, unreadable
from celery_kit.brokers.rabbitmq.failed import (
    DeadMessage,
    RabbitmqFailedTasks,
    Transaction,
    body_of,
    finish,
    noted,
    properties_of,
)

if TYPE_CHECKING:
    from celery import Celery
    from kombu.transport.base import StdChannel
    from upstream.amqp import Channel

    from celery_kit.base.types import Connection, Message

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
#: How many letters are sent back in one transaction.
TOGETHER = 20
#: Seconds that it waits at most until those that stay are requeued, and between two looks.
REQUEUED, EVERY = 5.0, 0.02
REASONS = {"delivery_limit": "delivered too often (the broker's count)", "rejected": "rejected by its task, without requeue"}


def _bound(name: str, reason: str, arguments: Mapping[str, object]) -> Queue:
    match = {"x-match": "any-with-x", "x-last-death-reason": reason}
    exchange = Exchange(DEAD, "headers", durable=True)
    return Queue(name, exchange, durable=True, queue_arguments=dict(arguments), binding_arguments=match)


#: Without a limit: reading a letter counts as a delivery.
UNLIMITED = {"x-queue-type": "quorum", "x-delivery-limit": -1}
QUEUES = [
    *(_bound(DEAD, reason, UNLIMITED) for reason in REASONS),
    Queue(FAILED, durable=True, queue_arguments=UNLIMITED),  # its bounds are a user's settings: failed.py
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
        with app.producer_or_acquire() as producer:
            producer.publish(
                body_of(message),
                exchange="",
                routing_key=DEAD,
                headers=noted(message, letter),
                mandatory=True,  # raises an error if there is no such queue; otherwise the message would be lost
                retry=True,
                retry_policy={"max_retries": 3},
                content_type=message.content_type or "application/data",
                content_encoding=message.content_encoding,
                **properties_of(message),
            )

    def queue_of(self, message: Message, by_tag: Mapping[str, str]) -> str:
        """The queue that a message came from: the consumer's, or else by its routing key."""
        info = message.delivery_info
        return by_tag.get(info.get("consumer_tag", "")) or DELAY.sub("", info.get("routing_key") or "")

    def failed(self, app: Celery, connection: Connection) -> RabbitmqFailedTasks:
        """What stores failed tasks. Raises the connection's errors."""
        channel: Channel = connection.channel()
        declare(channel, FAILED)
        return RabbitmqFailedTasks(app, channel, connection.channel())

    def each(
        self, app: Celery, decide: Callable[[DeadLetter], Action], done: Callable[[int, int], object] = lambda *_: None
    ) -> None:
        """Call `decide` for every letter and do what it returns. Raises OperationalError at the end if one cannot be sent
        back.
        """
        with app.connection_for_read() as connection, connection.channel() as opened:
            channel = cast("Channel", opened)
            declare(channel, DEAD, FAILED)
            # All are read before the first is sent back: if it is dead-lettered again, it must not be read here again.
            found = sorted([*_all(channel, DEAD), *_all(channel, FAILED)], key=lambda one: one.letter.when)
            decided = [(decide(one.letter), one) for one in found]
            wanted = [(action, one) for action, one in decided if action != "keep"]
            wrong, transaction, signer = "", Transaction(channel), security.signer(app)
            for start in range(0, len(wanted), TOGETHER):
                several = wanted[start : start + TOGETHER]
                wrong = finish(connection, transaction, several, signer) or wrong
                done(start + len(several), len(wanted))
            # The letters that stay are requeued before this returns. Otherwise the broker would do it some time after the
            # channel is closed, and the next reader would not see them.
            channel.basic_recover(requeue=True)
            _await(channel, Counter(one.home for one in found) - Counter(one.home for _, one in wanted))
            if wrong:
                raise OperationalError(wrong)


def declare(channel: Channel, *names: str) -> None:
    """Declare those of the queues above that have these names."""
    for queue in QUEUES:
        if queue.name in names:
            queue(cast("StdChannel", channel)).declare()


def _await(channel: Channel, kept: Mapping[str, int]) -> None:
    """Wait until the broker counts as many messages in the queues as were requeued: it answers before it has done so."""
    deadline = monotonic() + REQUEUED
    for name in (DEAD, FAILED):
        while channel.queue_declare(name, passive=True).message_count < kept[name] and monotonic() < deadline:
            sleep(EVERY)


def _all(channel: Channel, home: str) -> list[DeadMessage]:
    """All messages of a queue of dead letters. Drops those that a later one of the same failed task has replaced."""
    found: dict[object, DeadMessage] = {}
    # Until the queue is empty, not as many as the broker counts: a slow broker counts none (rabbit_quorum_queue:stat).
    while got := channel.basic_get(home):
        message = channel.message_to_python(got)  # Queue.get would raise the errors of a message
        one = DeadMessage(home, message, letter(message))
        key = one.letter.id if home == FAILED else len(found)
        if earlier := found.pop(key, None):
            earlier.message.ack()
        found[key] = one
    return list(found.values())


def letter(message: Message) -> DeadLetter:
    """The letter of a message in the queue, to which anybody can publish anything."""
    try:
        return _noted(message)
    except Exception as error:
        name = str(message.properties.get("correlation_id") or message.delivery_tag)
        return unreadable(name, error, moment())


def _noted(message: Message) -> DeadLetter:
    """The letter that a worker noted in a header, or one made of the broker's own header."""
    if NOTE in message.headers:
        return letter_from(message.headers[NOTE])
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
