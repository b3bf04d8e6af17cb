"""The stack that a command is for: that of BROKER, or whichever of this checkout runs."""

import os

from dotenv import dotenv_values

from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.docker import others
from celery_kit.operate.stacks.local import Local

Stack = Local | Compose
#: The brokers whose stacks run in containers.
IN_CONTAINERS = [broker.name for broker in BROKERS.values() if broker.compose_file]


def stack_of(broker: str) -> Stack:
    """The stack of a broker, running or not."""
    return Compose(broker) if BROKERS[broker].compose_file else Local()


def meant() -> list[Stack]:
    """The stacks that a command may refer to: that of BROKER if it is given now; otherwise all, that of .env first."""
    given = os.environ.get("BROKER")
    stack = stack_of(choose("BROKER", given, BROKERS)) if given else Local()
    if given and given != dotenv_values(ROOT / ".env").get("BROKER"):
        return [stack]
    return [Compose(), Local()] if isinstance(stack, Compose) else [Local(), Compose()]


def running_stack() -> Stack:
    """The running stack of this checkout, or that of BROKER if it is given. Refuses if none runs."""
    found = next((stack for stack in meant() if stack.running()), None)
    if not found:
        start, theirs = f"'make up', or 'make up BROKER={IN_CONTAINERS[0]} POOL=gevent'", others()
        refuse(f"no stack runs; start one with {start}{theirs and f'. Not of this checkout: {theirs}'}")
    return found
