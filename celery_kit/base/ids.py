"""Ids as kombu makes them, random UUIDs of version 4, many at once: a third of the time, which counts in `send_many`."""

import os
from collections.abc import Iterator

_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def ids() -> Iterator[str]:
    """Ids without end. For one thread, of one process: a forked child would go on with the same ones."""
    while True:
        block = os.urandom(16 * 256).hex()
        for at in range(0, len(block), 32):
            yield _id(block[at : at + 32])


def new_id() -> str:
    """One of its own."""
    return _id(os.urandom(16).hex())


def _id(one: str) -> str:
    return f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{_VARIANT[one[16]]}{one[17:20]}-{one[20:]}"
