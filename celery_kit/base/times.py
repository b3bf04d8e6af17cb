"""Times that follow from TASK_TIME_LIMIT, the longest time that a task may run. The compose files derive the same values.

Each has a variable of its own. A value that contradicts the time limit is refused.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from celery_kit.base.refusals import refuse

#: The longest allowed time, in seconds: a year. Compose and the operating system's timers have limits somewhere beyond it.
MOST = 31_536_000
UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600}


@dataclass(frozen=True)
class Derived:
    """A time that must be longer than another one. `of(limit)`: its default, in seconds, for a time limit in seconds; 0: none.

    `unit`: the unit of a plain number in its variable. `bare`: a number without a unit is allowed. `otherwise`: what would
    happen if the time were shorter. `bound`: the variable of the time that it must exceed.
    """

    name: str
    unit: str
    of: Callable[[int], int]
    otherwise: str
    bare: bool = True
    bound: str = "TASK_TIME_LIMIT"


#: Compose reads this variable too, and requires a unit.
STOP_GRACE_PERIOD = Derived(
    "STOP_GRACE_PERIOD", "s", lambda limit: limit + 30, "a stop would kill tasks that may still run", bare=False
)
#: For workers of plain Celery beside the kit's, which hold a task until its ETA (celery #5935), and keep none for longer.
VISIBILITY_TIMEOUT = Derived(
    "VISIBILITY_TIMEOUT", "s", lambda limit: max(3_600, 4 * limit), "workers of plain Celery would run again what others hold",
    bound="WORKER_LEASE",
)  # fmt: skip
#: The same formula as in deploy/brokers/rabbitmq/compose.yaml, which can only append zeros. A year without a time limit.
CONSUMER_TIMEOUT = Derived(
    "CONSUMER_TIMEOUT", "ms", lambda limit: 100 * limit or MOST, "the broker would take a task from a worker that still runs it"
)


def seconds(derived: Derived, limit: int, environ: Mapping[str, str], bound: int | None = None) -> int:
    """The value of `derived` in seconds, for a time limit of `limit` seconds. Refuses what is not a time, or too short.

    `bound`: what it must exceed, in seconds, if that is not the time limit.
    """
    bound = limit if bound is None else bound
    given = environ.get(derived.name)
    if not given:
        return derived.of(limit)
    text = given + derived.unit if given.isdecimal() and derived.bare else given
    parts = re.findall(r"([0-9]+)(ms|[smh])", text) if re.fullmatch(r"([0-9]{1,12}(ms|[smh]))+", text) else []
    found = int(sum(int(number) * UNITS[unit] for number, unit in parts))
    if not parts or found > MOST:
        number = f"a number of {derived.unit}, or " if derived.bare else ""
        refuse(f"{derived.name}={given} is not allowed; {number}a time such as 5m30s, of at most a year")
    if found <= bound:
        factor = round(1 / UNITS[derived.unit])
        refuse(
            f"{derived.name}={given} contradicts {derived.bound}={bound}: {derived.otherwise}; "
            f"leave it out, or choose {derived.of(limit) * factor}{'' if factor > 1 else derived.unit}"
        )
    return found
