"""What is set aside on RabbitMQ: a quorum queue, filled by workers and by the broker itself.

Every quorum queue of the app names :data:`DEAD` as its dead-letter exchange. By it the broker sets aside what a worker
rejected, and what came back more often than any worker lets it: a message that kills the worker before it can be looked at.
The queues' arguments say so, not a policy: that needs an administrator's rights on the broker, and without one a task would be
dropped silently. Arguments cannot change once a queue is there (406), so none of these follows from what a user can set.

Tasks that expired are not dead: the exchange looks at the reason, and their copy goes to those that tell who waits for them
(`expired.py`). Reason of the last death, not the first: a delayed task has "expired" before, in the queues that delay
it.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from celery.app import amqp
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError

from celery_kit.base.messages import DEAD, DELIVERIES, NOTE
from celery_kit.brokers.contract import Action, DeadLetter
from celery_kit.fixes.delayed_messages import DELAY

#: RabbitMQ 4's own limit. Written down, so that one that has another default counts the same.
BROKER_LIMIT = 20

WITH_DEAD_LETTERS = {
    "x-delivery-limit": BROKER_LIMIT,
    "x-dead-letter-exchange": DEAD,
    # Without these two a dead letter that the broker cannot hand over at once is lost
    # (https://www.rabbitmq.com/docs/4.0/quorum-queues#activating-at-least-once-dead-lettering).
    "x-dead-letter-strategy": "at-least-once",
    "x-overflow": "reject-publish",
}
#: The copies of expired tasks: the latest, as many as may be held, where no worker takes them.
EXPIRED = f"{DEAD}.revoked"
HELD = {"x-max-length": 100_000, "x-max-length-bytes": 64 * 1024 * 1024}
#: Classes of AMQP's methods: exchange, queue.
DECLARING = (40, 50)
#: Headers of a dead letter that the task which is sent back has not: what they begin with.
OURS = (NOTE, DELIVERIES, "x-death", "x-first-death-", "x-last-death-")
REASONS = {"delivery_limit": "came back too often (the broker's count)", "rejected": "rejected by its task, without requeue"}


def _bound(name: str, reason: str, arguments: Mapping[str, Any]) -> Queue:
    match = {"x-match": "any-with-x", "x-last-death-reason": reason}
    exchange = Exchange(DEAD, "headers", durable=True)
    return Queue(name, exchange, durable=True, queue_arguments=dict(arguments), binding_arguments=match)


QUEUES = [
    # No limit: to look at a letter counts as a delivery.
    *(_bound(DEAD, reason, {"x-queue-type": "quorum", "x-delivery-limit": -1}) for reason in REASONS),
    (REVOKED := _bound(EXPIRED, "expired", HELD)),
]


class Queues(amqp.Queues):
    """Celery's table of queues, in which a queue that names no type has that of the setting for missing ones, and every quorum
    queue names the dead-letter exchange, one of the user's own too.

    Producers and workers must declare a queue alike, whatever way it comes to be.
    """

    def __setitem__(self, name: str, queue: Queue) -> None:
        this: Any = self  # the stubs lack it
        if this.create_missing_queue_type == "quorum" and _may_be_quorum(queue):
            queue.queue_arguments = {**(queue.queue_arguments or {}), "x-queue-type": "quorum"}
        if queue.queue_arguments and queue.queue_arguments.get("x-queue-type") == "quorum":
            queue.queue_arguments = WITH_DEAD_LETTERS | queue.queue_arguments
        super().__setitem__(name, queue)


def _may_be_quorum(queue: Any) -> bool:
    """It names no type, and nothing that only classic queues have.
    https://www.rabbitmq.com/docs/quorum-queues#feature-matrix
    """
    classic = {"x-queue-type", "x-max-priority", "x-queue-mode", "x-queue-version", "x-queue-master-locator"}
    fleeting = queue.exclusive or queue.auto_delete or not queue.durable
    return not (fleeting or queue.max_priority or classic & set(queue.queue_arguments or ()))


#: What an answer to a declaration says, and what mends it. Without an end: the next one is the same.
UNLIKE = re.compile(r"PRECONDITION_FAILED - inequivalent arg '(?P<what>[^']+)' for (?P<kind>queue|exchange) '(?P<name>[^']*)'")
MENDS = {
    "queue": "describe it in task_queues as it is, as in Queue('{name}', queue_arguments={{'x-queue-type': 'classic'}}), "
    "delete it while it is empty, or give the kit a virtual host of its own (docs/migration.md)",
    "exchange": "describe it in task_queues as it is, as in Queue('{name}', Exchange('{name}', 'direct')), delete it, "
    "or give the kit a virtual host of its own (docs/migration.md)",
    "": "correct what declares it, or the account's rights; 'make doctor' looks at the broker",
}


def explain(error: BaseException) -> str | None:
    """One line on the broker's answer to a declaration, and what mends it; None for any other error."""
    method, text = getattr(error, "method_sig", None), getattr(error, "reply_text", None)
    if not text or not method or method[0] not in DECLARING:
        return None
    found = UNLIKE.search(text)
    about = found.groupdict() if found else {"kind": "", "name": ""}
    what = f"the {found['kind']} {found['name']!r} is there already, and not as it is declared: {text}" if found else text
    return f"RabbitMQ refuses what the app declares: {what}; {MENDS[about['kind']].format(**about)}"


class RabbitmqDeadLetters:
    def prepare(self, app: Any) -> None:
        with app.connection_for_read() as connection:
            *first, last = (queue(connection.default_channel) for queue in QUEUES)
            for queue in first:  # a worker's start waits for three answers, not for nine: an error of these comes with the next
                queue.declare(nowait=True)
            last.declare()

    def put(self, app: Any, message: Any, letter: DeadLetter) -> None:
        headers = {**message.headers, NOTE: asdict(letter)}
        if not message.errors:
            headers.pop("compression", None)  # kombu has taken it off the body
        self._publish(app, message, DEAD, headers)

    def queue_of(self, message: Any, by_tag: Mapping[str, str]) -> str:
        info = message.delivery_info
        return by_tag.get(info.get("consumer_tag")) or DELAY.sub("", info.get("routing_key") or "")

    def each(self, app: Any, decide: Callable[[DeadLetter], Action]) -> None:
        with app.connection_for_read() as connection, closing(connection.channel()) as channel:
            QUEUES[0](channel).declare()
            # Not as many as the broker counts: one that is slow counts none (rabbit_quorum_queue:stat).
            again: list[tuple[Any, DeadLetter]] = []
            while found := channel.basic_get(DEAD):
                message = channel.message_to_python(found)  # not Queue.get: that raises what is wrong with a message
                letter = _letter(message)
                action = decide(letter)
                if action == "retry":
                    again.append((message, letter))  # not yet: it might be set aside again, and be found again
                elif action == "drop":
                    message.ack()
            failed: OperationalError | None = None
            for message, letter in again:
                headers = {name: value for name, value in message.headers.items() if not name.startswith(OURS)}
                try:
                    self._publish(app, message, letter.queue, headers)
                except OperationalError as error:  # its queue is gone, say
                    failed = error
                else:
                    message.ack()
            # What is kept is back when this returns. By itself it goes back some time after the channel has closed, and
            # who looks next would not see it.
            channel.basic_recover(requeue=True)
            channel.queue_declare(DEAD, passive=True)
            if failed:
                raise failed

    def _publish(self, app: Any, message: Any, queue: str, headers: Mapping[str, Any]) -> None:
        """To a queue, by the default exchange; the broker has confirmed it when this returns."""
        given = {
            k: v for k, v in message.properties.items() if k not in ("application_headers", "content_encoding", "expiration")
        }
        with app.producer_or_acquire() as producer:
            producer.publish(
                _bytes(message.body, message.content_encoding),
                exchange="",
                routing_key=queue,
                headers=headers,
                mandatory=True,  # an error where there is no such queue, in place of a confirmed loss
                retry=True,
                retry_policy={"max_retries": 3},
                **{**given, "content_type": message.content_type or "application/data"},
                content_encoding=message.content_encoding,
            )


def _bytes(body: Any, encoding: str | None) -> bytes:
    """A body as it came: py-amqp has decoded it where it could, by an encoding that Python may know under no such name."""
    if not isinstance(body, str):
        return bytes(body)
    try:
        return body.encode(encoding or "utf-8")
    except LookupError:
        return body.encode()


def _letter(message: Any) -> DeadLetter:
    """What is known of it; anybody can put anything into the queue."""
    try:
        return _noted(message)
    except (LookupError, TypeError) as error:
        name = str(message.properties.get("correlation_id") or message.delivery_tag)
        reason = f"its record cannot be read: {type(error).__name__}: {error}"
        return DeadLetter(name, "", "", reason, datetime.now(UTC).isoformat(timespec="seconds"), 0)


def _noted(message: Any) -> DeadLetter:
    if NOTE in message.headers:
        return DeadLetter(**message.headers[NOTE])
    death = message.headers["x-death"][0]  # the broker's own
    when = death["time"].replace(tzinfo=UTC) if isinstance(death["time"], datetime) else datetime.now(UTC)
    return DeadLetter(
        id=str(message.headers.get("id") or message.properties.get("correlation_id") or ""),
        task=str(message.headers.get("task") or ""),
        queue=death["queue"],
        reason=REASONS.get(death["reason"], death["reason"]),
        when=when.isoformat(timespec="seconds"),
        deliveries=BROKER_LIMIT + 1 if death["reason"] == "delivery_limit" else message.headers.get(DELIVERIES, 0) + 1,
    )
