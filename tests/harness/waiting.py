"""Waiting for a condition: a deadline and a sentence in place of sleeps."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: str, condition: Callable[[], T], seconds: float = 60.0, every: float = 0.05) -> T:
    """Ask `condition` until it gives something true, and give that back; fail with `what` after `seconds`. `every`: seconds."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)


def settled(look: Callable[[], T], wanted: Callable[[T], bool], seconds: float, every: float = 0.05) -> T:
    """What `look` gives once that is `wanted`, or after `seconds`: for whoever tells what came instead. `every`: seconds."""
    deadline = time.monotonic() + seconds
    while not wanted(seen := look()) and time.monotonic() < deadline:
        time.sleep(every)
    return seen
