"""How often eventlet's loop wakes for timers that nobody waits for any more."""

import os
import subprocess
import sys

import pytest

from celery_kit.base.target import ROOT

#: Prints how often the loop waits in half a second, in which fifty timers would be due that are cancelled.
LOOK = """
import eventlet
eventlet.monkey_patch()
{fix}
from eventlet.hubs import get_hub
hub, waits = get_hub(), []
wait = hub.wait

def counted(seconds):
    waits.append(seconds)
    return wait(seconds)

hub.wait = counted
timers = [hub.schedule_call_global(0.05 + n / 125, print, "fired") for n in range(50)]
fires = hub.schedule_call_global(0.25, print, "wanted")
eventlet.sleep(0)  # as a loop that has run since: they are among its timers
for timer in timers:
    timer.cancel()
eventlet.sleep(0.5)
print(len(waits), len(hub.timers), hub.timers_canceled)
"""


def waits(fix: str) -> tuple[str, int, int, int]:
    environ = {**os.environ, "BROKER": "redis", "CELERY_BROKER_URL": "redis://127.0.0.1:1/0"}
    run = subprocess.run(
        [sys.executable, "-c", LOOK.format(fix=fix)], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    said, counts = run.stdout.splitlines()
    number, left, cancelled = map(int, counts.split())
    return said, number, left, cancelled


@pytest.mark.parametrize(
    ("fix", "seldom"),
    [
        ("import app", True),
        # If this one fails, `celery_kit/fixes/eventlet_timers.py` is no longer needed.
        ("", False),
    ],
    ids=["celery-kit", "eventlet alone"],
)
def test_a_cancelled_timer_does_not_wake_the_loop(fix: str, seldom: bool) -> None:
    said, number, left, cancelled = waits(fix)
    assert (said, left, cancelled) == ("wanted", 0, 0)
    assert (number < 20) is seldom
