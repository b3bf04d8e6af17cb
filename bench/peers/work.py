"""The work in the tasks, the same for all contenders. This module imports none of them."""

import time
from itertools import count

#: By kind of work, the share of its tasks that fails.
FAILING = {"fail": 0.05}
_numbers = count(1)


def noop(text: str) -> int:
    return len(text)


def nap(text: str) -> int:
    """5 ms of waiting, as for a quick answer over the network."""
    time.sleep(0.005)
    return len(text)


def call(text: str) -> int:
    """100 ms of waiting, as for a slow answer over the network."""
    time.sleep(0.1)
    return len(text)


def burn(text: str) -> int:
    """About 1 ms of computing."""
    return sum(number * number for number in range(20_000)) and len(text)


def fail(text: str) -> int:
    """Nothing, and each twentieth task of a process fails."""
    if next(_numbers) % 20 == 0:
        raise ValueError("as intended")
    return len(text)


WORK = {"noop": noop, "nap": nap, "call": call, "burn": burn, "fail": fail}
