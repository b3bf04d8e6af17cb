"""The work in the tasks, the same for all contenders. This module imports none of them."""

import time


def noop(text: str) -> int:
    return len(text)


def nap(text: str) -> int:
    """5 ms of waiting, as for a quick answer over the network."""
    time.sleep(0.005)
    return len(text)


def burn(text: str) -> int:
    """About 1 ms of computing."""
    return sum(number * number for number in range(20_000)) and len(text)


WORK = {"noop": noop, "nap": nap, "burn": burn}
