"""A task for a Broadcast queue reaches every worker that listens, however it is sent: fixes broadcast, fanouts."""

from collections.abc import Iterator
from uuid import uuid4

import pytest

from tests.compat.rig import SIDES, Place, Side
from tests.harness.workers import PLAIN_CELERY

WAYS = ["queue", "headers", "by name", "exchange", "many"]


@pytest.fixture(scope="module", params=SIDES)
def listeners(request: pytest.FixtureRequest, place: Place) -> Iterator[list[Side]]:
    """Two workers of a side that listen to one Broadcast."""
    name, queue = f"broadcast-{uuid4().hex[:8]}", f"compat-{uuid4().hex[:8]}"
    two = [Side(request.param, place, {"BROADCAST": name, "NOTES": place.results}, queue) for _ in range(2)]
    try:
        yield [side.start("threads", "-Q", f"{queue},{name}") for side in two]
    finally:
        for side in two:
            side.stop()


def test_a_broadcast_reaches_all(listeners: list[Side]) -> None:
    """A producer that only sends need not have declared the queue."""
    side = listeners[0]
    found = side.client("broadcast:heard", WAYS, side.environ["BROADCAST"], 2)
    wanted = {f"{way} {number}": 2 for way in WAYS for number in range(2)}
    if side.name == PLAIN_CELERY and side.place.name == "redis":
        assert found == dict.fromkeys(wanted, 0)  # if not, the fix broadcast may go
    else:
        assert found == wanted


def test_a_broadcast_from_who_knows_of_no_such_queue(listeners: list[Side]) -> None:
    """A producer that has only the exchange's name gets its type, fanout, from the broker."""
    side = listeners[0]
    found = side.client("broadcast:heard", ["exchange"], side.environ["BROADCAST"], 2, BROADCAST="")
    reached = 0 if side.name == PLAIN_CELERY and side.place.name == "redis" else 2
    assert found == {"exchange 0": reached, "exchange 1": reached}
