"""Late tasks: the exception that reaches them, and only them."""

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded

from celery_kit.pools.interrupt import SIGNAL, Interrupt, watch
from celery_kit.pools.time_limits import Late, TimeLimits
from tests.harness.waiting import until

SOON = 0.05  # seconds


def in_main(work: Callable[[], Any]) -> Any:
    return work()


def in_thread(work: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


places = pytest.mark.parametrize("place", (in_main, in_thread))


def nap(seconds: float = 10) -> str:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)
    return "slept on"


class Pool(TimeLimits):
    """Runs at once what it is given; keeps what came back, and which limits were reported."""

    timeout_in = Interrupt

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.back: list[Any] = []
        self.limits: list[tuple[bool, float]] = []

    def on_apply(self, target: Callable[..., Any], *_: Any, callback: Callable[[Any], Any], **__: Any) -> None:
        callback(target())

    def run(self, task: Callable[[], Any], soft: float | None = None, hard: float | None = None) -> None:
        self.apply_async(
            task,
            callback=self.back.append,
            soft_timeout=soft,
            timeout=hard,
            timeout_callback=lambda *told: self.limits.append(told),
        )


@places
def test_the_hard_limit_ends_a_task(place: Callable[..., Any]) -> None:
    pool = Pool()
    place(lambda: pool.run(nap, hard=SOON))
    assert (pool.back, pool.limits) == ([], [(False, SOON)])


def test_the_workers_own_limit_holds_where_a_task_has_none() -> None:
    pool = Pool(timeout=SOON)
    pool.run(nap)
    assert (pool.back, pool.limits) == ([], [(False, SOON)])


@places
def test_a_task_cleans_up_at_its_soft_limit_and_is_told_once(place: Callable[..., Any]) -> None:
    def careful() -> str:
        try:
            return nap()
        except SoftTimeLimitExceeded:
            return nap(3 * SOON)

    pool = Pool()
    place(lambda: pool.run(careful, soft=SOON, hard=60))
    assert (pool.back, pool.limits) == (["slept on"], [(True, SOON)])


@places
def test_whoever_goes_on_after_the_soft_limit_is_ended_at_the_hard_one(place: Callable[..., Any]) -> None:
    def stubborn() -> str:
        while True:
            with suppress(SoftTimeLimitExceeded):
                nap()

    pool = Pool()
    place(lambda: pool.run(stubborn, soft=SOON, hard=4 * SOON))
    assert (pool.back, pool.limits) == ([], [(False, 4 * SOON)])


@places
def test_a_task_in_time_is_left_alone_and_so_is_the_next(place: Callable[..., Any]) -> None:
    pool = Pool()

    def both() -> None:
        pool.run(lambda: "quick", soft=SOON, hard=SOON)
        pool.run(lambda: nap(6 * SOON))

    place(both)
    assert (pool.back, pool.limits) == (["quick", "slept on"], [])
    assert not watch.running


def test_what_comes_when_the_task_has_just_ended_reaches_nobody() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [SIGNAL])
    try:
        with Interrupt(60, Late()) as late:
            watch._strike(late)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [SIGNAL])
    assert nap(SOON) == "slept on"


def test_a_call_that_waits_is_cut_short_in_the_main_thread() -> None:
    never = threading.Event()
    with pytest.raises(Late), Interrupt(SOON, Late()):
        never.wait(30)


def test_the_watch_sleeps_while_nothing_runs() -> None:
    with Interrupt(60, Late()):
        assert watch._some.is_set()
    until("it sleeps", lambda: not watch._some.is_set(), 10)
