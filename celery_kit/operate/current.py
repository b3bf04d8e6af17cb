"""The stack that a command is for: that of BROKER, or whichever of this checkout runs. What it looks like now."""

import json
import os
import subprocess
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from dotenv import dotenv_values

from celery_kit.base.facts import Member
from celery_kit.base.refusals import choose, refuse
from celery_kit.base.target import ROOT
from celery_kit.brokers import BROKERS
from celery_kit.operate.groups import Group
from celery_kit.operate.stacks.compose import Compose
from celery_kit.operate.stacks.docker import Facts, others
from celery_kit.operate.stacks.local import Local

if TYPE_CHECKING:
    from celery_kit.operate.look.status import Snapshot

#: How many seconds a process of a stack may take to report its status, including the process' start.
LOOK_SECONDS = 20.0
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


def look(stack: Stack, inspected: list[Facts], members: list[Member], patience: float) -> "Snapshot":
    """A snapshot of a stack, with its groups. For a codebase, a process of the stack takes it if one answers, because it has
    the packages.
    """
    from celery_kit.operate.look import status

    running = tuple(stack.groups(inspected))
    if stack.codebase(inspected) and any(one.running for one in members if one.role in ("worker", "beat")):
        given = json.dumps([patience, [asdict(one) for one in members]])
        with suppress(subprocess.TimeoutExpired, LookupError, ValueError, TypeError):
            done = stack.python(
                "operator", "celery_kit.operate.look.status", "--packed", input=given, capture_output=True, timeout=LOOK_SECONDS
            )
            found = status.unpacked(done.stdout.strip().splitlines()[-1])
            return replace(status.seen(found, stack.seen(inspected)), groups=running)
    return replace(status.snapshot(lambda: members, patience), groups=running)


def join(stack: Stack, role: str = "operator") -> list[Facts]:
    """Set this process' environment to that of a stack, in a role. Returns the descriptions of the stack's processes."""
    inspected = stack.inspected()
    os.environ.update(stack.environment(inspected, role))
    return inspected


def groups_of(stack: Stack, name: str) -> dict[str, Group]:
    """The groups of a stack, by name. Refuses a name that none of them has."""
    known = {one.name: one for one in stack.groups(stack.inspected())}
    if not known:
        refuse(f"GROUP={name}: the stack runs without worker groups (docs/groups.md)")
    choose("GROUP", name, known)
    return known
