"""Many messages in one command: kombu's own envelope, made once for a sample and filled in for each message."""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from kombu.utils.uuid import uuid

from app.brokers.contract import Part, Sample, UnconfirmedError
from app.ids import ids

#: What stands in a sample's envelope where each message has its own.
BODY, ARGS, KWARGS = (f"@{uuid()}@" for _ in range(3))
_quoted = json.encoder.encode_basestring_ascii


class _Commands:
    """Takes the commands that kombu's channel would send for a message, as its publish batches do."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, tuple[Any, ...]]] = []

    def add(self, name: str, *args: Any) -> None:
        self.taken.append((name, args))


class Bulk:
    """LPUSH of all messages at once. Source: kombu/transport/redis.py, Channel._put."""

    def __init__(self, connection: Any, patience: float) -> None:
        self.channel = connection.default_channel
        self.errors = (*connection.connection_errors, *connection.channel_errors)
        self.client = self.channel._create_client()
        self._known: tuple[Sample, list[Callable[[Part], tuple[str, str, str]]]] | None = None

    def send(self, parts: Sequence[Part]) -> None:
        commands = [command(part) for part in parts for command in self._commands(part.sample)]
        try:
            with self.client.pipeline(transaction=False) as pipe:
                for (name, key), group in groupby(commands, lambda command: command[:2]):
                    values = [value for _, _, value in group]
                    if name == "lpush":
                        pipe.lpush(key, *values)
                    else:
                        for value in values:
                            getattr(pipe, name)(key, value)
                pipe.execute()
        except self.errors as error:
            raise UnconfirmedError(str(error), {part.id for part in parts}) from error

    def close(self) -> None:
        pass

    def _commands(self, sample: Sample) -> list[Callable[[Part], tuple[str, str, str]]]:
        if not self._known or self._known[0] is not sample:
            self._known = (sample, self._learn(sample))
        return self._known[1]

    def _learn(self, sample: Sample) -> list[Callable[[Part], tuple[str, str, str]]]:
        """For each command that a message like `sample` takes, what makes it from a message's own parts."""
        headers = {**sample.headers, "argsrepr": ARGS, "kwargsrepr": KWARGS}
        body = BODY.encode()
        properties = {**sample.properties, "delivery_info": {}}
        message = self.channel.prepare_message(
            body, sample.priority, sample.content_type, sample.content_encoding, headers, properties
        )
        commands = _Commands()
        self.channel.basic_publish(message, sample.exchange, sample.routing_key, _publish_batch=commands)
        tag = message["properties"]["delivery_tag"]
        places = {f'"{b64encode(body).decode()}"': 0, f'"{ARGS}"': 1, f'"{KWARGS}"': 2, f'"{sample.id}"': 3, f'"{tag}"': 4}
        return [self._filled(name, str(key), str(value), places) for name, (key, value) in commands.taken]

    def _filled(self, name: str, key: str, value: str, places: dict[str, int]) -> Callable[[Part], tuple[str, str, str]]:
        pieces = re.split("|".join(f"({re.escape(place)})" for place in places), value)
        pieces = [piece for piece in pieces if piece is not None]
        where = [(index, places[piece]) for index, piece in enumerate(pieces) if piece in places]

        tags = ids()

        def fill(part: Part) -> tuple[str, str, str]:
            own = (
                f'"{b64encode(part.body).decode()}"',
                _quoted(part.argsrepr),
                _quoted(part.kwargsrepr),
                f'"{part.id}"',
                f'"{next(tags)}"',
            )
            filled = pieces.copy()
            for index, what in where:
                filled[index] = own[what]
            return name, key, "".join(filled)

        return fill
