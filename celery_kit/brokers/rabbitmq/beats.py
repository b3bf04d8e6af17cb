"""Which of several beats leads, and the last runs of the timetable: one message, the token, which only one beat can hold.

The queue of the token has a single active consumer: RabbitMQ gives all of its messages to one beat, until that beat's
connection ends. Who holds the token leads. The token has the runs. To send a task, the leader publishes its message and the
next token, and acknowledges the token that it holds, in one transaction of AMQP: all of it happens, or nothing. A beat that was
frozen, or cut off, has lost its connection, and with it the transaction.

Each beat that connects publishes a token without runs, so that there is one, and the leader acknowledges those that are older
than its own. RabbitMQ tells no time, but notes when a message has expired: an expired message is the clock.
Source: https://www.rabbitmq.com/docs/consumers#single-active-consumer, https://www.rabbitmq.com/docs/semantics#tx,
https://www.rabbitmq.com/docs/dlx#effects.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from time import monotonic, time
from typing import TYPE_CHECKING, NamedTuple

from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str
from kombu.utils.uuid import uuid

from celery_kit.base.messages import Part, UnroutedError, message_of
from celery_kit.brokers.contract import Run, run_of
from celery_kit.brokers.rabbitmq.failed import Transaction, is_there

if TYPE_CHECKING:
    from celery import Celery
    from upstream.amqp import Channel, Message

    from celery_kit.base.types import Connection, Headers

#: The queue of the token, and the exchange of expired messages. An app with a name has a queue of its own.
NAME = "celery-kit.beat"
#: Reading the token counts as a delivery, and it is never too often.
ARGUMENTS = {"x-queue-type": "quorum", "x-single-active-consumer": True, "x-delivery-limit": -1}
#: Seconds. The broker drops a beat that shows no sign of life for two to three of these intervals.
HEARTBEAT = 3
#: Seconds to wait for a connection, for an answer of the broker, and for the token that was just published.
CONNECT, ANSWER = 3.0, 3.0
BOUNDED = {"read_timeout": ANSWER, "write_timeout": ANSWER}
#: Seconds after which the leader publishes its token again, long before the broker's limit for unacknowledged messages, and
#: after which a beat looks at the clock again.
RENEW, CLOCK = 60.0, 10.0


class Token(NamedTuple):
    """A token that this beat holds. `number`: a later token has a larger one."""

    tag: int
    number: int
    runs: dict[str, Run]


class Lead:
    """See celery_kit/brokers/contract.py."""

    def __init__(self, app: Celery) -> None:
        self.connection: Connection = app.connection_for_write(
            heartbeat=HEARTBEAT,
            connect_timeout=CONNECT,
            # In a transaction there are no confirms. The timeouts are those of a socket.
            transport_options={"confirm_publish": False, "engine": "plain", "max_retries": 0, **BOUNDED},
        )
        self.errors = (*self.connection.connection_errors, *self.connection.channel_errors, TimeoutError, OperationalError)
        self._queue = NAME + (f".{app.main}" if app.main else "")
        self._held: list[Token] = []
        self._mine = self._term = 0  # the number of the token that this beat has published as the leader, and of its terms
        self._least, self._most = -float("inf"), float("inf")  # how far the broker's clock is ahead of the monotonic one
        self._renewed = self._looked = 0.0
        self._open = False
        self._answers: list[Headers] = []

    def hold(self) -> str:
        """See there."""
        try:
            if not self._open:
                self._connect()
            if monotonic() - self._looked > CLOCK:
                self._look_at_the_clock()
            self.connection.heartbeat_check()
            self._drain(0.001)
            if not self._held:
                self._mine = 0
                return ""
            if self._newest().number != self._mine:
                return self._begin()
            if len(self._held) > 1 or monotonic() - self._renewed > RENEW:
                self._commit(self._newest().runs)
            return str(self._term)
        except BaseException:
            self._drop()
            raise

    def now(self) -> float:
        """See there."""
        return time() if self._least == -float("inf") else self._least + monotonic()

    def runs(self) -> dict[str, Run]:
        """See there."""
        return dict(self._newest().runs) if self._held else {}

    def keep(self, runs: Mapping[str, Run]) -> bool:
        """See there."""
        return self._as_leader(dict(runs))

    def fire(self, name: str, run: Run, part: Part | None, queue: str = "") -> bool:
        """See there."""
        if queue and not is_there(self.connection, queue):
            raise UnroutedError(f"no worker has declared queue {queue!r} yet")
        return self._as_leader({**self.runs(), name: run}, part)

    def is_refusal(self, error: BaseException) -> bool:
        """See there."""
        return isinstance(error, self.connection.channel_errors)

    def leave(self) -> None:
        """See there."""
        with suppress(Exception):
            self.connection.release()
        self._drop()

    def _connect(self) -> None:
        """Connect, and consume the token. Raises the connection's errors."""
        try:
            self.connection.connect()
        except self.connection.connection_errors:
            self.connection.maybe_switch_next()
            raise
        self._open = True
        channel: Channel = self.connection.channel()
        self._channel = channel
        channel.exchange_declare(NAME, "direct", durable=True, auto_delete=False)
        channel.queue_declare(self._queue, durable=True, auto_delete=False, arguments=ARGUMENTS)
        channel.queue_bind(self._queue, NAME, self._queue)
        self._start_the_clock()
        self._transaction = Transaction(channel)
        self._publish(0, {})
        channel.tx_commit()
        channel.basic_consume(self._queue, callback=self._received, on_cancel=self._cancelled)

    def _drop(self) -> None:
        """Forget the connection, and with it what this beat holds."""
        self._held, self._mine, self._open, self._looked = [], 0, False, 0.0
        self.connection.collect()

    def _cancelled(self, _: str) -> None:
        raise self.connection.connection_errors[0](f"the queue {self._queue} was deleted")

    def _received(self, message: Message) -> None:
        number, runs = 0, dict[str, Run]()
        with suppress(ValueError, RecursionError, AttributeError):  # anybody could have published it
            said = json.loads(bytes_to_str(message.body))
            if type(said.get("number")) is int:
                runs = {str(name): run for name, given in said["runs"].items() if (run := run_of(given))}
                number = said["number"]
        self._held.append(Token(message.delivery_tag, number, runs))

    def _newest(self) -> Token:
        return max(self._held, key=lambda one: one.number)

    def _drain(self, seconds: float) -> None:
        """Handle what the broker has sent, and wait so many seconds for the first of it."""
        with suppress(TimeoutError):
            while True:
                self.connection.drain_events(timeout=seconds)

    def _begin(self) -> str:
        """Lead: this beat is the active consumer. It has to hold all tokens, since any may be the newest."""
        deadline = monotonic() + ANSWER
        self._drain(0.1)
        while self._channel.queue_declare(self._queue, passive=True).message_count and monotonic() < deadline:
            self._drain(0.1)
        self._term += 1
        self._commit(self._newest().runs)
        return str(self._term)

    def _as_leader(self, runs: dict[str, Run], part: Part | None = None) -> bool:
        try:
            if not self._mine:
                return False
            self._commit(runs, part)
            return True
        except BaseException:
            self._drop()
            raise

    def _commit(self, runs: dict[str, Run], part: Part | None = None) -> None:
        """Publish a message and the next token, acknowledge all others, and wait until the broker has delivered that token."""
        if part:
            to = (part.sample.exchange, part.sample.routing_key, part.sample.mandatory)
            self._channel._basic_publish(message_of(self._channel, part), *to)
        number = self._newest().number + 1
        self._publish(number, runs)
        held = list(self._held)
        for one in held:
            self._channel.basic_ack(one.tag)
        self._transaction.commit()
        self._held = [one for one in self._held if one not in held]  # the next one may have arrived already
        self._mine, self._renewed = number, monotonic()
        deadline = monotonic() + ANSWER
        while not any(one.number == number for one in self._held):
            self.connection.drain_events(timeout=max(deadline - monotonic(), 0.001))

    def _publish(self, number: int, runs: Mapping[str, Run]) -> None:
        body = json.dumps({"number": number, "runs": runs}).encode()
        made = self._channel.prepare_message(body, content_type="application/json", properties={"delivery_mode": 2})
        self._channel._basic_publish(made, NAME, self._queue)

    # The clock

    def _start_the_clock(self) -> None:
        """Declare a queue in which messages expire at once, and one that gets them then."""
        self._clock: Channel = self.connection.channel()
        asked, answers = (f"{NAME}.{uuid()}" for _ in range(2))
        to = {"x-dead-letter-exchange": NAME, "x-dead-letter-routing-key": answers}
        self._clock.queue_declare(asked, exclusive=True, auto_delete=False, arguments={"x-message-ttl": 0, **to})
        self._clock.queue_declare(answers, exclusive=True, auto_delete=True)
        self._clock.queue_bind(answers, NAME, answers)
        self._clock.queue_bind(asked, NAME, asked)
        self._clock.basic_consume(answers, no_ack=True, callback=self._told)
        self._asked = asked

    def _look_at_the_clock(self) -> None:
        """Ask, and wait for the answer. The broker tells whole seconds: each answer narrows down where they begin."""
        sent = monotonic()
        self._answers.clear()
        self._clock._basic_publish(self._clock.prepare_message(b""), NAME, self._asked)
        while not self._answers:
            self.connection.drain_events(timeout=max(sent + ANSWER - monotonic(), 0.001))
        told = self._answers[0]["time"]
        second = told.replace(tzinfo=UTC).timestamp() if isinstance(told, datetime) else float(told)
        least, most = second - monotonic(), second + 1 - sent
        if least > self._most or most < self._least:  # its clock was set
            self._least, self._most = -float("inf"), float("inf")
        self._least, self._most = max(least, self._least), min(most, self._most)
        self._looked = monotonic()

    def _told(self, message: Message) -> None:
        self._answers.append(message.properties["application_headers"]["x-death"][0])
