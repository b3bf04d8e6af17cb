"""revoke(terminate=True) on threads: which task ends by it, what is told of it, and what is left alone."""

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from celery import Celery, signals
from celery.contrib.testing.worker import start_worker
from celery.exceptions import TaskRevokedError
from celery.worker import state

from app.interrupt import Interrupt, watch
from app.terminate import Terminated
from tests.wait import until

WAIT = 20  # seconds; a deadline, never an expectation


class Gate:
    """What the tasks of a test tell it, and what they wait for."""

    def __init__(self) -> None:
        self.close()

    def close(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.open = threading.Event()


the_gate = Gate()


def _told(work: Callable[[], Any]) -> Callable[[Any], str]:
    def run(self: Any) -> str:
        the_gate.begun.append(self.request.id)
        work()
        the_gate.ended.append(self.request.id)
        return "ended"

    return run


def _loop() -> None:
    while not the_gate.open.is_set():
        time.sleep(0.01)  # between two looks: a task that waits in short steps


def _go_on() -> None:
    with pytest.raises(Terminated):
        _loop()
    _loop()


@pytest.fixture(scope="module")
def app() -> Any:
    app: Any = Celery("terminate", broker="memory://terminate", backend="cache+memory://", set_as_current=False)
    app.conf.update(
        task_acks_late=True,
        worker_prefetch_multiplier=4,
        worker_hijack_root_logger=False,
        worker_send_task_events=True,
        broker_transport_options={"polling_interval": 0.01},
    )
    app.steps["consumer"].update(("app.terminate:Step", "app.time_limits:Step"))
    works = {"loop": _loop, "wait": lambda: the_gate.open.wait(WAIT), "stubborn": _go_on, "pass": lambda: None}
    works["calls"] = lambda: app.tasks["loop"]()
    for name, work in works.items():
        app.task(_told(work), name=name, bind=True, shared=False)
    return app


@pytest.fixture(scope="module")
def worker(app: Celery) -> Iterator[Any]:
    """In this process, on Celery's own pool; its tasks run one at a time."""
    with start_worker(app, pool="threads", concurrency=1, perform_ping_check=False, shutdown_timeout=WAIT) as worker:
        yield worker


@pytest.fixture
def gate(worker: Any) -> Iterator[Gate]:
    the_gate.close()
    yield the_gate
    the_gate.open.set()
    until("the worker has no task", lambda: not state.requests, WAIT)


def send(app: Celery, name: str) -> Any:
    return app.send_task(name)


def terminate(app: Celery, *results: Any) -> Any:
    answers: Any = app.control.revoke([one.id for one in results], terminate=True, reply=True, limit=1, timeout=WAIT)
    (said,) = answers[0].values()
    return said


def revoked(result: Any) -> bool:
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    return bool(result.state == "REVOKED")


def test_a_running_task_ends_and_the_thread_goes_on_with_the_next(app: Celery, gate: Gate) -> None:
    running, following = send(app, "loop"), send(app, "pass")
    until("it runs", lambda: gate.begun, WAIT)
    assert terminate(app, running) == {"ok": f"terminate: {running.id}"}
    assert revoked(running) and following.get(timeout=WAIT) == "ended"
    assert gate.ended == [following.id]


def test_its_signal_its_event_and_its_acknowledgement_come_once(app: Celery, gate: Gate) -> None:
    told: list[Any] = []
    seen: list[Any] = []
    received: list[Any] = []

    def hear(request: Any, terminated: bool, signum: Any, expired: bool, **_: Any) -> None:
        told.append((request.id, terminated, signum, expired))

    signals.task_revoked.connect(hear)
    signals.task_received.connect(receive := lambda request, **_: received.append(request))
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": seen.append})
        with receiver.Consumer() as (consuming, _, _):
            running = send(app, "loop")
            until("it runs", lambda: gate.begun, WAIT)
            terminate(app, running)
            assert revoked(running) and send(app, "pass").get(timeout=WAIT) == "ended"
            while not any(event["type"] == "task-succeeded" for event in seen):
                with suppress(TimeoutError):
                    consuming.drain_events(timeout=0.2)
    of_it = [event for event in seen if event.get("uuid") == running.id]
    assert [event["type"] for event in of_it] == ["task-received", "task-started", "task-revoked"]
    assert (of_it[-1]["terminated"], of_it[-1]["signum"], of_it[-1]["expired"]) == (True, 15, False)
    assert told == [(running.id, True, 15, False)]
    signals.task_received.disconnect(receive)
    assert received[0].id == running.id and received[0].acknowledged and received[0].message._state == "ACK"


@pytest.mark.parametrize("ends_running_ones", (True, False))
def test_a_task_that_waits_for_the_thread_does_not_begin(app: Celery, gate: Gate, ends_running_ones: bool) -> None:
    running, waiting = send(app, "loop"), [send(app, "pass") for _ in range(3)]
    until("they wait", lambda: len(state.reserved_requests) == 4 and gate.begun, WAIT)
    app.control.revoke([one.id for one in waiting], terminate=ends_running_ones, reply=True, limit=1, timeout=WAIT)
    following = send(app, "pass")
    gate.open.set()
    assert all(map(revoked, waiting)) and following.get(timeout=WAIT) == "ended"
    assert gate.begun == gate.ended == [running.id, following.id]


def test_one_command_ends_the_running_and_the_waiting_ones(app: Celery, gate: Gate) -> None:
    several = [send(app, "loop") for _ in range(4)]
    until("they wait", lambda: len(state.reserved_requests) == 4 and gate.begun, WAIT)
    said = terminate(app, *several)
    assert all(one.id in said["ok"] for one in several)
    assert all(map(revoked, several)) and send(app, "pass").get(timeout=WAIT) == "ended"
    assert gate.begun[0] in {one.id for one in several} and len(gate.begun) == 2


def test_a_call_that_waits_ends_first(app: Celery, gate: Gate) -> None:
    waiting = send(app, "wait")
    until("it waits", lambda: gate.begun, WAIT)
    terminate(app, waiting)
    until("it was told", lambda: not watch.running, WAIT)
    assert state.active_requests and not waiting.ready()
    gate.open.set()
    assert revoked(waiting) and not gate.ended


def test_who_goes_on_all_the_same_has_its_outcome(app: Celery, gate: Gate) -> None:
    stubborn = send(app, "stubborn")
    until("it runs", lambda: gate.begun, WAIT)
    terminate(app, stubborn)
    until("it was told", lambda: not watch.running, WAIT)
    gate.open.set()
    assert stubborn.get(timeout=WAIT) == "ended"


def test_what_celery_does_after_the_task_is_not_cut_short(app: Celery, gate: Gate) -> None:
    """Stores its result, sends its signals, writes to the log: half of it would be neither an outcome nor another."""
    steps: list[str] = []

    def succeeded(**_: Any) -> None:
        steps.append("begun")
        _loop()
        steps.append("ended")

    signals.task_success.connect(succeeded)
    done = send(app, "pass")
    until("its success is told", lambda: steps, WAIT)
    terminate(app, done)
    following = send(app, "pass")
    gate.open.set()
    assert following.get(timeout=WAIT) == "ended" and done.state == "SUCCESS"
    signals.task_success.disconnect(succeeded)
    assert steps == ["begun", "ended"] * 2


def test_a_task_that_was_called_as_a_function_ends_with_its_caller(app: Celery, gate: Gate) -> None:
    calling = send(app, "calls")
    until("both run", lambda: len(gate.begun) == 2, WAIT)
    terminate(app, calling)
    assert revoked(calling) and not gate.ended


def test_one_that_takes_a_lock_for_its_caller_is_ended_later() -> None:
    """A log handler's, which every thread waits for: before Python 3.13 nothing would give it back."""
    lock, taken, over = threading.Lock(), threading.Event(), threading.Event()
    found: list[Any] = []
    held = [True]

    def acquire() -> None:
        lock.acquire()
        taken.set()
        while held:  # calls nothing: whoever looks sees this function
            pass

    def work() -> None:
        try:
            with Interrupt(60, Terminated()) as one:
                found.append(one)
                acquire()
                try:
                    over.wait(WAIT)
                finally:
                    lock.release()
        except Terminated:
            found.append("ended")

    thread = threading.Thread(target=work)
    thread.start()
    taken.wait(WAIT)
    watch._strike(found[0])
    assert found[0].pending
    found[0].due = 0.0
    held.clear()
    until("it is told", lambda: not found[0].pending, WAIT)
    over.set()
    thread.join(WAIT)
    assert found[1:] == ["ended"] and not lock.locked()


def test_what_comes_about_the_end_of_a_task_reaches_that_task_or_nobody() -> None:
    """Each of many short tasks of a thread is told to end about when it ends: none but itself sees it."""
    last: dict[int, Interrupt] = {}
    outcomes: Counter[str] = Counter()
    astray: list[BaseException] = []

    def spin(seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pass

    def tasks() -> None:
        for _ in range(500):
            try:
                try:
                    with Interrupt(60, Terminated()) as one:
                        last[one.thread] = one
                        spin(0.0005)
                except Terminated:
                    outcomes["ended"] += 1
                else:
                    outcomes["done"] += 1
                spin(0.0002)  # whatever the thread does next
            except Terminated as error:
                astray.append(error)

    threads = [threading.Thread(target=tasks) for _ in range(4)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.0001)  # seconds; Python's own is longer than these tasks
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for one in list(last.values()):
                spin(random.uniform(0, 0.001))
                watch._strike(one)
    finally:
        sys.setswitchinterval(usual)
    assert not astray and outcomes.total() == 2000
    assert outcomes["ended"] and outcomes["done"], outcomes
    assert not watch.running
