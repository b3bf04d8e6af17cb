"""The worker's loop: fixes hub_stall, quick_drain and cancelled_timers."""

import socket
import threading
from collections.abc import Iterator
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker import components
from kombu.asynchronous import Hub

from celery_kit.fixes import event_loop

loops: Any = import_module("celery.worker.loops")


def test_what_a_callback_hands_to_the_loop_is_done_before_it_sleeps() -> None:
    """A message arrives two seconds later; kombu's own loop sleeps until then, and handles it first."""
    event_loop.hub_stall()
    hub: Any = Hub()
    reader, writer = socket.socketpair()
    done: list[str] = []
    hub.call_soon(lambda: hub.call_soon(lambda: done.append("callback")))
    hub.add_reader(reader, lambda: done.append(reader.recv(9).decode()))
    hub.timer.call_after(60, lambda: None)
    arrives = threading.Timer(2, lambda: writer.send(b"message"))
    arrives.start()
    try:
        while len(done) < 2:
            hub.run_once()
    finally:
        arrives.join()
        hub.close()
        reader.close()
        writer.close()
    assert done == ["callback", "message"]


@pytest.fixture
def drain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The fix's, in the place of Celery's own for as long as the test lasts."""
    monkeypatch.setattr(loops, "_quick_drain", loops._quick_drain)
    event_loop.quick_drain()
    yield loops._quick_drain


def test_what_there_is_is_read_and_nothing_more_is_waited_for(drain: Any) -> None:
    waits: list[float] = []
    drain(SimpleNamespace(drain_events=lambda timeout: waits.append(timeout)))
    assert waits == [event_loop.DRAIN]


def test_nothing_to_read_is_no_error_and_a_lost_connection_is(drain: Any) -> None:
    def fails(error: Exception) -> Any:
        def drain_events(timeout: float) -> None:
            raise error

        return SimpleNamespace(drain_events=drain_events)

    drain(fails(TimeoutError()))
    with pytest.raises(ConnectionResetError):
        drain(fails(ConnectionResetError(104, "reset")))


def test_what_is_cancelled_is_not_kept() -> None:
    event_loop.cancelled_timers()
    timer: Any = vars(components)["_Timer"]()
    for number in range(20_000):
        entry = timer.call_after(3_600, print)
        if number % 100:
            entry.cancel()
    assert 200 <= len(timer) < 2_000


def test_what_is_not_cancelled_runs_in_its_turn() -> None:
    timer: Any = event_loop.SweptTimer()
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
