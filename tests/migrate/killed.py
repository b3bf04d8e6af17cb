"""The tool, in a process that kills itself: `python -m tests.migrate.killed POINT NUMBER --from URL --to URL`.

POINT is a moment and a step of a move. The moments: `before`; `half`, when some of its messages are sent to RabbitMQ; `sent`,
when the command that decides is sent, and its answer not yet read; `after`. NUMBER: in which batch.
"""

import importlib
import os
import signal
import sys
from typing import Any

import amqp
import redis.connection

from celery_kit.operate.look import migrate

STEPS = ("claim", "store", "drop", "forget")
MOMENTS = ("before", "half", "sent", "after")
POINTS = tuple(f"{moment} {step}" for step in STEPS for moment in MOMENTS)
armed = ""
published = 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: Any, step: str, moment: str, number: int) -> None:
    """Have a step of an end kill the process."""
    original, calls = getattr(kind, step), [0]

    def killing(self: Any, *given: Any) -> Any:
        global armed, published
        calls[0] += 1
        if calls[0] != number:
            return original(self, *given)
        if moment == "before":
            die()
        armed, published = moment, 0
        answer = original(self, *given)
        armed = ""
        if moment == "after":
            die()
        return answer

    setattr(kind, step, killing)


def hook() -> None:
    """Have what sends commands kill the process while it is armed."""
    channel: Any = amqp.Channel
    connection: Any = redis.connection.AbstractConnection
    read, commit, publish = connection.read_response, channel.tx_commit, channel._basic_publish

    def read_response(self: Any, *given: Any, **options: Any) -> Any:
        if armed == "sent":
            die()
        return read(self, *given, **options)

    def tx_commit(self: Any) -> Any:
        if armed == "sent":
            self.send_method(amqp.spec.Tx.Commit)
            die()
        return commit(self)

    def basic_publish(self: Any, *given: Any, **options: Any) -> Any:
        global published
        published += 1
        if armed == "half" and published == 10:
            die()
        return publish(self, *given, **options)

    connection.read_response = read_response
    channel.tx_commit, channel._basic_publish = tx_commit, basic_publish


def main() -> None:
    point, number, *sys.argv[1:] = sys.argv[1:]
    moment, step = point.split()
    for name in ("celery_kit.brokers.redis.moving:RedisEnd", "celery_kit.brokers.rabbitmq.moving:RabbitmqEnd"):
        module, _, kind = name.partition(":")
        arm(getattr(importlib.import_module(module), kind), step, moment, int(number))
    hook()
    migrate.main()


if __name__ == "__main__":
    main()
