"""A queue that one client at a time writes and reads, by AMQP's transactions, and that outlives the client.

A client that is killed before its commit has done nothing, after it all. But its commit may still be on its way while the next
client begins. The queue delivers to a single active consumer, on the channel of the transactions. So the next one gets nothing
until the broker has dropped the former's channel, with all that was sent by it. A message of its own then marks the end of what
is there.
Source: https://www.rabbitmq.com/docs/semantics; https://www.rabbitmq.com/docs/consumers#single-active-consumer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import uuid4

from celery_kit.brokers.moving import BusyError
from celery_kit.brokers.rabbitmq.failed import Transaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from upstream.amqp import Channel
    from upstream.amqp import Message as Raw

    from celery_kit.base.types import Connection, Headers

ARGUMENTS = {"x-queue-type": "quorum", "x-delivery-limit": -1, "x-single-active-consumer": True}
#: The header of a message that marks an end.
MARK = "celery-kit-mark"
#: Seconds for which it waits for a former client to go, and for messages that are on their way.
PATIENCE = 30.0


def headers_of(raw: Raw) -> Headers:
    """The headers of a message as py-amqp has it."""
    return dict(raw.properties.get("application_headers") or {})


class Ledger:
    """The queue `name`, opened. `entries`: its messages that are not acknowledged, by delivery tag. Raises BusyError."""

    def __init__(self, connection: Connection, name: str) -> None:
        self.connection, self.name = connection, name
        self.channel: Channel = connection.channel()
        self.channel.queue_declare(name, durable=True, auto_delete=False, arguments=ARGUMENTS)
        self.entries: dict[int, Raw] = {}
        self._marks: set[str] = set()
        self._transaction = Transaction(self.channel)
        self.channel.basic_consume(name, callback=self._received)
        for _ in range(2):  # the former client's last messages may stand between the two marks
            self._mark()
        self.commit()  # which acknowledges the marks

    def _received(self, raw: Raw) -> None:
        if mark := headers_of(raw).get(MARK):
            self._marks.add(mark)
            self.channel.basic_ack(raw.delivery_tag)
        else:
            self.entries[raw.delivery_tag] = raw

    def _mark(self) -> None:
        mark = uuid4().hex
        self.publish(self.channel.prepare_message(b"", headers={MARK: mark}), self.name)
        self.commit()
        if not self.await_(lambda: mark in self._marks):
            raise BusyError(f"another 'migrate' works on it, or is frozen: a consumer holds the queue {self.name}")

    def await_(self, met: Callable[[], bool]) -> bool:
        """Wait until a condition about the entries is met, for PATIENCE at most. Returns whether it is."""
        deadline = time.monotonic() + PATIENCE
        while not met():
            try:
                self.connection.drain_events(timeout=max(0.01, deadline - time.monotonic()))
            except TimeoutError:
                return met()
        return True

    def publish(self, message: object, queue: str, exchange: str = "") -> None:
        """Publish a message, as part of the transaction. It is returned if there is no such queue."""
        self.channel._basic_publish(message, exchange, queue, mandatory=True)

    def commit(self) -> set[str]:
        """Commit what was published and acknowledged. Returns the routing keys that no queue has; their messages are gone."""
        return self._transaction.commit()

    def remove(self, tags: list[int]) -> None:
        """Remove entries, in a transaction. All of them by one acknowledgement."""
        whole = len(tags) == len(self.entries)
        for tag in tags[-1:] if whole else tags:
            self.channel.basic_ack(tag, multiple=whole)
        for tag in tags:
            del self.entries[tag]
        self.commit()
