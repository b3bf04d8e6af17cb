"""A worker's timer does not keep what is cancelled until its time has come. celery_kit/fixes/cancelled_timers.py"""

from typing import Any

from celery.worker import components

from celery_kit.fixes import cancelled_timers


def test_what_is_cancelled_is_not_kept() -> None:
    cancelled_timers._patch()
    timer: Any = vars(components)["_Timer"]()
    for number in range(20_000):
        entry = timer.call_after(3_600, print)
        if number % 100:
            entry.cancel()
    assert 200 <= len(timer) < 2_000


def test_what_is_not_cancelled_runs_in_its_turn() -> None:
    timer: Any = cancelled_timers.SweptTimer()
    ran: list[int] = []
    past = -20_000  # seconds: also of a machine that has just started

    def call_at(eta: int) -> Any:
        return timer.call_at(past + eta, ran.append, (eta,))

    entries = [call_at(eta) for eta in reversed(range(10_000))]
    for entry in entries[::3]:
        entry.cancel()
    assert len(timer) > 6_666
    turns = iter(timer)
    call_at(-1)
    timer._sweep()
    while (entry := next(turns)[1]) is not None:
        timer.apply_entry(entry)
    assert ran == [-1, *(eta for eta in range(10_000) if (9_999 - eta) % 3)]
