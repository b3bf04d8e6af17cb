"""When the worker's loop wakes itself on Redis."""

from types import SimpleNamespace
from typing import Any

import pytest

from celery_kit.brokers.redis import poller


class Poller(poller.Poller):
    """Counts how often it wakes its hub; the clock is the test's."""

    hub: Any = SimpleNamespace(call_later=lambda *_: None)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(bool)
        self.now, self.wakes = 0.0, 0
        monkeypatch.setattr(poller, "monotonic", lambda: self.now)

    def wake(self) -> None:
        self.wakes += 1

    def wake_at(self, due: float, seen_at: float, late: float) -> None:
        """Ask for a wake-up at `due`, `late` seconds after the wait for it was computed at `seen_at`."""
        self.now = seen_at + late
        self._wake_hub_in(due - seen_at, self.hub)


def test_the_same_time_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes from reading the clock to the call."""
    one = Poller(monkeypatch)
    for seen_at, late in ((0.0, 0.0005), (0.1, 0.0003), (0.2, 0.0001)):
        one.wake_at(1.0, seen_at, late)
    assert one.wakes == 1


@pytest.mark.parametrize("sooner", [0.9, 0.003])
def test_an_earlier_time_wakes_the_loop(monkeypatch: pytest.MonkeyPatch, sooner: float) -> None:
    one = Poller(monkeypatch)
    one.wake_at(1.0, 0.0, 0.0)
    one.wake_at(sooner, 0.001, 0.0)
    assert one.wakes == 2
