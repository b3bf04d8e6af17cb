"""Waiting for a condition with a deadline and an error message, instead of sleeping."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(what: str, condition: Callable[[], T], seconds: float = 60.0, every: float = 0.05) -> T:
    """Poll `condition` every `every` seconds, and return its first true value. Fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(every)


def settled(look: Callable[[], T], wanted: Callable[[T], bool], seconds: float, every: float = 0.05) -> T:
    """Poll `look` every `every` seconds, and return its first `wanted` value, or the last value after `seconds`."""
    deadline = time.monotonic() + seconds
    while not wanted(seen := look()) and time.monotonic() < deadline:
        time.sleep(every)
    return seen
