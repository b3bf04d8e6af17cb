"""Brokers and results servers by every form of address that Celery takes: what it does there, the kit does."""

from collections.abc import Callable, Iterator

import pytest

from tests.compat.conftest import outcomes
from tests.compat.rig import SIDES, Place, Side

#: How two brokers are named of which the first is away: in one text, or as a list in the configuration.
DEAD = ":1/"
WAYS = ("sent", "sent_together", "sent_by_beat")
GIVE = {"sent": [2, 3, 4, 5, 6, 7], "sent_together": [2, 3, 4], "sent_by_beat": 6, "workers_answer": ["pong"]}


def dead(url: str) -> str:
    """The same address where nobody listens."""
    head, _, tail = url.rpartition(":")
    return f"{head}:1/{tail.partition('/')[2]}"


@pytest.fixture(scope="module", params=["redis", "rabbitmq"])
def failing_over(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Iterator[dict[str, Side]]:
    """A worker of each side whose first broker is away."""
    there = places(request.param)
    place = Place(there.name, f"{dead(there.broker)};{there.broker}", there.results)
    started: dict[str, Side] = {}
    try:
        for name in SIDES:
            started[name] = Side(name, place, {"PUBLISH_TIMEOUT": "5"}).start("threads")
        yield started
    finally:
        for side in started.values():
            side.stop()


@pytest.mark.parametrize("way", WAYS)
def test_whoever_sends_goes_on_to_the_broker_that_is_there(failing_over: dict[str, Side], way: str) -> None:
    """Every connection of the app, a producer's too, tries the next of several brokers when one is away."""
    assert outcomes(failing_over, f"connections:{way}") == dict.fromkeys(SIDES, GIVE[way])


@pytest.mark.parametrize("way", ["status", "dead"])
def test_whoever_looks_goes_on_to_the_broker_that_is_there(failing_over: dict[str, Side], way: str) -> None:
    """What the tools show is of the broker that answers, with a word on the one that does not."""
    side = failing_over["fast"]
    with side.python("-m", f"app.{way}") as process:
        out, err = process.communicate(timeout=60)
    if way == "dead":
        assert (process.returncode, out, err) == (0, "0 set aside\n", "")
    else:
        alive, gone = (one.partition("://")[2].rpartition("@")[2] for one in side.place.broker.split(";")[::-1])
        assert alive in out.splitlines()[0] and "DOES NOT ANSWER" not in out
        assert f"{gone} does not answer" in out.splitlines()[1] and "consuming" in out


def test_a_worker_answers_whoever_reaches_it_by_the_second_broker(failing_over: dict[str, Side]) -> None:
    """Remote control goes on to the broker that is there, as tasks do."""
    gave = outcomes(failing_over, "connections:workers_answer")
    assert gave == dict.fromkeys(SIDES, gave["celery"]) and "pong" in gave["celery"]
