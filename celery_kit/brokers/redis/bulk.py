"""Publish many messages by one command. kombu makes the envelope once for a sample, and each message fills in its own parts."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kombu.utils.uuid import uuid

from celery_kit.base.correlation import SENT
from celery_kit.base.ids import ids, new_id
from celery_kit.base.messages import Part, Sample, UnconfirmedError
from celery_kit.engine.parts import on
from celery_kit.engine.quick_json import quoted

if TYPE_CHECKING:
    from upstream.redis import Pipeline

    from celery_kit.base.types import Connection
    from celery_kit.brokers.redis.transport import Channel

#: Placeholders in a sample's envelope for what each message has of its own.
BODY, ARGS, KWARGS, SENT_AT, REPLY_TO = (f"@{uuid()}@" for _ in range(5))

#: A command: its name, its arguments but the last one, and the last one, which has the message.
Command = tuple[str, tuple[object, ...], str]
#: Makes one command of a message, from its parts and its delivery tag.
Fill = Callable[[Part, str], Command]


class Commands:
    """Records the commands that kombu's channel would send for a message, like kombu's publish batches."""

    def __init__(self) -> None:
        self.recorded: list[tuple[str, tuple[object, ...]]] = []

    def add(self, name: str, *args: object) -> None:
        self.recorded.append((name, args))


class Envelopes:
    """The commands that publish messages like a sample. Source: kombu/transport/redis.py, Channel._put."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Sample, list[Fill]] = WeakKeyDictionary()

    def commands(self, channel: Channel, part: Part, tag: str) -> list[Command]:
        """The commands of a message. `tag`: its delivery tag."""
        fills = self._known.get(part.sample)
        if fills is None:
            fills = self._known[part.sample] = self._learn(channel, part.sample)
        return [fill(part, tag) for fill in fills]

    def _learn(self, channel: Channel, sample: Sample) -> list[Fill]:
        """For each command of a message like `sample`, a function that makes it from another message's own parts."""
        headers = {**sample.headers, "argsrepr": ARGS, "kwargsrepr": KWARGS}
        if SENT in headers:
            headers[SENT] = SENT_AT
        body = BODY.encode()
        properties = {**sample.properties, "delivery_info": {}, "reply_to": REPLY_TO}
        message = channel.prepare_message(
            body, sample.priority, sample.content_type, sample.content_encoding, headers, properties
        )
        commands = Commands()
        channel.basic_publish(message, sample.exchange, sample.routing_key, _publish_batch=commands)
        tag = message["properties"]["delivery_tag"]
        own = (b64encode(body).decode(), ARGS, KWARGS, sample.id, tag, SENT_AT, REPLY_TO)
        places = {f'"{text}"': index for index, text in enumerate(own)}
        return [self._filled(name, head, str(value), places) for name, (*head, value) in commands.recorded]

    def _filled(self, name: str, head: Sequence[object], value: str, places: dict[str, int]) -> Fill:
        pieces = [piece for piece in re.split(f"({'|'.join(map(re.escape, places))})", value) if piece]
        first = (*head,)
        where = [(index, places[piece]) for index, piece in enumerate(pieces) if piece in places]

        def fill(part: Part, tag: str) -> Command:
            own = (
                f'"{b64encode(part.body).decode()}"',
                quoted(part.argsrepr),
                quoted(part.kwargsrepr),
                f'"{part.id}"',
                f'"{tag}"',
                repr(part.sent),
                quoted(part.reply_to),
            )
            filled = pieces.copy()
            for index, what in where:
                filled[index] = own[what]
            return name, first, "".join(filled)

        return fill


_envelopes: WeakKeyDictionary[Channel, Envelopes] = WeakKeyDictionary()


def _replicas(channel: Channel) -> int:
    """How many replicas must have a message; kombu's own channel, where the kit's cannot be had, knows of none."""
    return getattr(channel, "replicas", 0)


def _run(channel: Channel, pipe: Pipeline) -> None:
    if _replicas(channel):
        channel.run(pipe)
    else:
        pipe.execute()


def like(channel: Channel, part: Part, seconds: float) -> None:
    """Publish one message, usually by one command. Raises redis-py's errors.

    `seconds` is not used: the client's socket_timeout limits the wait.
    """
    # The queues that are bound to an exchange may change.
    envelopes = Envelopes() if part.sample.exchange else _envelopes.setdefault(channel, Envelopes())
    commands = envelopes.commands(channel, part, new_id())
    with channel.conn_or_acquire() as client:
        if len(commands) == 1 and not _replicas(channel):
            name, head, value = commands[0]
            getattr(client, name)(*head, value)
            return
        with client.pipeline(transaction=not _replicas(channel)) as pipe:
            for name, head, value in commands:
                getattr(pipe, name)(*head, value)
            _run(channel, pipe)


class Bulk:
    """Publishes all messages by one pipeline, with one LPUSH for each list."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self.channel: Channel = connection.default_channel
        self.errors = (*connection.connection_errors, *connection.channel_errors)
        self.client = self.channel._create_client()
        self.envelopes = Envelopes()
        self.tags = ids() if on("quick_ids") else iter(uuid, "")

    def send(self, parts: Sequence[Part]) -> None:
        """Publish, and wait for the server's answer. Raises UnconfirmedError if it fails."""
        commands = [command for part in parts for command in self.envelopes.commands(self.channel, part, next(self.tags))]
        try:
            with self.client.pipeline(transaction=False) as pipe:
                for (name, head), group in groupby(commands, lambda command: command[:2]):
                    values = [value for _, _, value in group]
                    for several in [values] if name == "lpush" else [[value] for value in values]:
                        getattr(pipe, name)(*head, *several)
                _run(self.channel, pipe)
        except self.errors as error:
            raise UnconfirmedError(str(error), {part.id for part in parts}) from error

    def close(self) -> None:
        """Nothing to close: the connections belong to the channel."""
