"""One number bounds a task, TASK_TIME_LIMIT; every other time follows from it, here and in the compose files.

Each may be given too, by its variable, where a task waits longer than it runs (a countdown of hours on Redis); a value that
contradicts the time limit is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from celery_kit.base.refusals import refuse

#: The longest of them, in seconds: a year. Compose and the operating system's timers end somewhere beyond.
MOST = 31_536_000
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600}


@dataclass(frozen=True)
class Derived:
    """A time that must be longer than the time limit. `of(limit)`: its value, in seconds, where none is given.

    `unit`: of a number in its variable. `bare`: such a number may stand there without its unit. `otherwise`: what a shorter
    time would do.
    """

    name: str
    unit: str
    of: Callable[[int], int]
    otherwise: str
    bare: bool = True


#: Compose reads it, too, and takes no number without its unit.
STOP_GRACE_PERIOD = Derived(
    "STOP_GRACE_PERIOD", "s", lambda limit: limit + 30, "a stop would kill tasks that may still run", bare=False
)
#: Also longer than an hour: on Redis a worker holds a task until its ETA (celery #5935).
VISIBILITY_TIMEOUT = Derived(
    "VISIBILITY_TIMEOUT", "s", lambda limit: max(3_600, 4 * limit), "a task would run again while it still runs"
)
#: As in deploy/brokers/rabbitmq/compose.yaml, which can append zeros and no more.
CONSUMER_TIMEOUT = Derived(
    "CONSUMER_TIMEOUT", "ms", lambda limit: 100 * limit, "the broker would take a task from a worker that still runs it"
)


def seconds(derived: Derived, limit: int, environ: Mapping[str, str]) -> int:
    """What it is, in seconds, for a time limit of `limit` seconds. Refuses what is no time, and what is too short."""
    given = environ.get(derived.name)
    if not given:
        return derived.of(limit)
    text = given + derived.unit if given.isdecimal() and derived.bare else given
    parts = re.findall(r"([0-9]+)(ms|[smh])", text) if re.fullmatch(r"([0-9]{1,12}(ms|[smh]))+", text) else []
    found = int(sum(int(number) * UNITS[unit] for number, unit in parts))
    if not parts or found > MOST:
        number = f"a number of {derived.unit}, or " if derived.bare else ""
        refuse(f"{derived.name}={given} is not allowed; {number}a time such as 5m30s, of at most a year")
    if found <= limit:
        factor = round(1 / UNITS[derived.unit])
        refuse(
            f"{derived.name}={given} contradicts TASK_TIME_LIMIT={limit}: {derived.otherwise}; "
            f"leave it out, or choose {derived.of(limit) * factor}{'' if factor > 1 else derived.unit}"
        )
    return found
