"""An idle worker on eventlet wakes once for each timer that its last tasks have cancelled.

Each wait for a socket has a timer for its time limit. eventlet 0.41.3 leaves one that is cancelled among the others until its
time has come, or until they are more than a thousand, and sleeps no longer than until the first of them: ten seconds after a
burst of 500 tasks the loop wakes 500 times, for nothing.
Source: eventlet/hubs/hub.py, BaseHub.sleep_until, timer_canceled. Closed by taking those that are first away before the loop
sleeps. Can go when tests/unit/fixes/test_eventlet_timers.py passes without it.
"""

import sys
from heapq import heappop
from typing import Any

MODULE = "eventlet.hubs.hub"


def connect() -> None:
    """Have a process whose loop is eventlet's use it."""
    if hub := sys.modules.get(MODULE):
        base: Any = hub.BaseHub
        base.sleep_until = sleep_until


def sleep_until(hub: Any) -> float | None:
    """When the hub's first timer is due that somebody still waits for; None where there is none."""
    timers = hub.timers
    while timers and timers[0][1].called:
        heappop(timers)
        hub.timers_canceled -= 1
    return timers[0][0] if timers else None
