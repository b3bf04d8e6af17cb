"""Which of several beats leads, by a lease on the server, and the last runs of the timetable, in a hash.

A message and the run of its entry are written in one transaction, which the server drops if the lease has changed: a beat that
was frozen, or cut off, sends nothing that another one may have sent. Without that the lease would only say who should lead.
Source: Redis' documentation of transactions, "Optimistic locking using check-and-set".
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic, time
from typing import TYPE_CHECKING

from kombu.exceptions import OperationalError
from kombu.utils.encoding import bytes_to_str
from kombu.utils.uuid import uuid
from redis.exceptions import ResponseError, WatchError

from celery_kit.base.ids import new_id
from celery_kit.base.lua import cannot_write, script
from celery_kit.brokers.contract import Run, run_of
from celery_kit.brokers.redis.bulk import Envelopes

if TYPE_CHECKING:
    from celery import Celery
    from upstream.redis import Pipeline

    from celery_kit.base.messages import Part
    from celery_kit.base.types import Connection
    from celery_kit.brokers.redis.transport import Channel

#: The hash with the runs; the lease has the same name and an ending. An app with a name has keys of its own.
RUNS, LEASE = "_celery-kit.beat", ".leader"
#: Seconds after which another beat leads if the leader shows no sign of life. It does so every second.
SECONDS = 6
SCRIPT = script(__name__, "beats")


class Lead:
    """See celery_kit/brokers/contract.py."""

    def __init__(self, app: Celery) -> None:
        self.connection: Connection = app.connection_for_write(transport_options={"max_retries": 0})
        self.errors = (*self.connection.connection_errors, *self.connection.channel_errors, OperationalError)
        self._runs = RUNS + (f":{app.main}" if app.main else "")
        self._me, self._term, self._ahead = uuid(), 0, time() - monotonic()

    def hold(self) -> str:
        """See there."""
        leader = self._ask("hold")
        if leader not in ("", self._me):
            return ""
        self._term += not leader
        return str(self._term)

    def now(self) -> float:
        """See there."""
        return self._ahead + monotonic()

    def runs(self) -> dict[str, Run]:
        """See there."""
        with self._channel.conn_or_acquire() as client:
            found = client.hgetall(self._channel.global_keyprefix + self._runs)
        runs: dict[str, Run] = {}
        for name, value in found.items():
            with suppress(ValueError, RecursionError):
                if run := run_of(json.loads(value)):
                    runs[bytes_to_str(name)] = run
        return runs

    def keep(self, runs: Mapping[str, Run]) -> bool:
        """See there."""

        def write(pipe: Pipeline) -> None:
            pipe.delete(self._runs)
            for name, run in runs.items():
                pipe.hset(self._runs, name, json.dumps(run))

        return self._as_leader(write)

    def fire(self, name: str, run: Run, part: Part | None, queue: str = "") -> bool:
        """See there. Any queue is there."""
        # The queues that are bound to an exchange may change: the commands are made each time.
        commands = Envelopes().commands(self._channel, part, new_id()) if part else []

        def write(pipe: Pipeline) -> None:
            pipe.hset(self._runs, name, json.dumps(run))
            for command, head, value in commands:
                getattr(pipe, command)(*head, value)

        return self._as_leader(write)

    def is_refusal(self, error: BaseException) -> bool:
        """See there."""
        return isinstance(error, ResponseError) and not cannot_write(error)

    def leave(self) -> None:
        """See there."""
        with suppress(*self.errors):
            self._ask("leave")
        self.connection.collect()

    @property
    def _channel(self) -> Channel:
        channel: Channel = self.connection.default_channel
        return channel

    def _ask(self, operation: str) -> str:
        """Do an operation of the script. Returns who led before."""
        lease = self._channel.global_keyprefix + self._runs + LEASE
        with self._channel.conn_or_acquire() as client:
            leader, seconds, microseconds = client.eval(SCRIPT, 1, lease, operation, self._me, SECONDS * 1_000)
        self._ahead = int(seconds) + int(microseconds) / 1e6 - monotonic()
        return bytes_to_str(leader)

    def _as_leader(self, write: Callable[[Pipeline], None]) -> bool:
        """Have the server do what `write` adds to a transaction, if this beat still leads then. Returns whether it did.

        If the connection is lost on the way, redis-py raises WatchError too, and the server may have done it.
        """
        lease = self._runs + LEASE
        try:
            with self._channel.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.watch(lease)
                if (pipe.get(self._channel.global_keyprefix + lease) or b"").decode() != self._me:
                    return False
                pipe.multi()
                write(pipe)
                pipe.execute()
        except WatchError:
            return False
        return True
