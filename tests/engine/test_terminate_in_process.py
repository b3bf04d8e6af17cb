"""revoke(terminate=True) on threads: which task it ends, what is reported, and what is not affected."""

import ctypes
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.app.trace import trace_task_ret
from celery.exceptions import TaskRevokedError
from celery.worker import state

from celery_kit.pools.interrupt import Interrupt, watch
from celery_kit.pools.threads import Terminated, Threads
from tests.harness.waiting import until

# Objects with incomplete type stubs.
celerys: Any = import_module("celery.worker.request")
control: Any = import_module("celery.worker.control")

WAIT = 20  # seconds; a deadline, never an expectation


class Gate:
    """Events between a test and its tasks."""

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
        time.sleep(0.01)  # a step of the work: an exception reaches a thread between two steps


def _go_on() -> None:
    with pytest.raises(Terminated):
        _loop()
    _loop()


class Worker:
    """The kit's pool of threads with one thread, and Celery's requests and remote control command, as in a worker."""

    def __init__(self) -> None:
        app: Any = Celery("terminate", broker="memory://terminate", backend="cache+memory://", set_as_current=False)
        works = {"loop": _loop, "wait": lambda: the_gate.open.wait(WAIT), "stubborn": _go_on, "pass": lambda: None}
        works["calls"] = lambda: app.tasks["loop"]()
        for name, work in works.items():
            app.task(_told(work), name=name, bind=True, shared=False, acks_late=True)
        pool: Any = Threads(1, app=app, timeout=60)
        self.app, self.pool = app, pool
        pool.start()
        self.requests: list[Any] = []
        self.enabled, self.events = True, list[tuple[str, dict[str, Any]]]()
        self.queue = app.connection_for_read().SimpleQueue("celery")

    def send(self, kind: str, **about: Any) -> None:
        """The interface of an event dispatcher."""
        self.events.append((kind, about))

    def run(self, name: str) -> Any:
        """Send a task, receive it, and pass it to the pool. Returns its AsyncResult."""
        result = self.app.send_task(name)
        message, task = self.queue.get(timeout=WAIT), self.app.tasks[name]
        trace = partial(trace_task_ret, app=self.app)
        kind = celerys.create_request_cls(celerys.Request, task, self.pool, "here", self, trace=trace, app=self.app)
        on = message.ack_log_error, message.reject_log_error
        self.request = kind(message, on_ack=on[0], on_reject=on[1], eventer=self, hostname="here", app=self.app, task=task)
        self.requests.append(self.request)
        state.task_reserved(self.request)
        self.request.execute_using_pool(self.pool)
        return result

    @property
    def is_idle(self) -> bool:
        return not any(one.id in state.requests for one in self.requests)

    def revoke(self, *results: Any, terminate: bool = True) -> Any:
        """Revoke like the remote control command."""
        panel = SimpleNamespace(app=self.app, consumer=SimpleNamespace(pool=self.pool))
        return control.revoke(panel, [one.id for one in results], terminate=terminate)


@pytest.fixture(scope="module")
def the_worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.pool.stop()


@pytest.fixture
def gate() -> Iterator[Gate]:
    the_gate.close()
    yield the_gate
    the_gate.open.set()


@pytest.fixture
def worker(the_worker: Worker, gate: Gate) -> Iterator[Worker]:
    the_worker.events.clear()
    yield the_worker
    gate.open.set()
    until("it has no task", lambda: the_worker.is_idle, WAIT)


def revoked(result: Any) -> bool:
    with pytest.raises(TaskRevokedError):
        result.get(timeout=WAIT)
    return bool(result.state == "REVOKED")


def test_a_running_task_ends_and_the_thread_goes_on_with_the_next(worker: Worker, gate: Gate) -> None:
    running, following = worker.run("loop"), worker.run("pass")
    until("it runs", lambda: gate.begun, WAIT)
    assert worker.revoke(running) == {"ok": f"terminate: {running.id}"}
    assert revoked(running) and following.get(timeout=WAIT) == "ended"
    assert gate.ended == [following.id]


def test_its_signal_its_event_and_its_acknowledgement_come_once(worker: Worker, gate: Gate) -> None:
    told: list[Any] = []

    def hear(request: Any, terminated: bool, signum: Any, expired: bool, **_: Any) -> None:
        told.append((request.id, terminated, signum, expired))

    signals.task_revoked.connect(hear)
    running = worker.run("loop")
    request = worker.request
    until("it runs", lambda: gate.begun, WAIT)
    worker.revoke(running)
    assert revoked(running)
    until("it is over", lambda: worker.is_idle, WAIT)
    how = {"uuid": running.id, "terminated": True, "signum": 15, "expired": False}
    assert worker.events == [("task-started", {"uuid": running.id}), ("task-revoked", how)]
    assert told == [(running.id, True, 15, False)]
    assert request.acknowledged and request.message._state == "ACK"
    assert request not in state.active_requests and request not in state.reserved_requests


@pytest.mark.parametrize("ends_running_ones", (True, False))
def test_a_task_that_waits_for_the_thread_does_not_begin(worker: Worker, gate: Gate, ends_running_ones: bool) -> None:
    running, waiting = worker.run("loop"), [worker.run("pass") for _ in range(3)]
    until("one runs", lambda: gate.begun, WAIT)
    worker.revoke(*waiting, terminate=ends_running_ones)
    following = worker.run("pass")
    gate.open.set()
    assert all(map(revoked, waiting)) and following.get(timeout=WAIT) == "ended"
    assert gate.begun == gate.ended == [running.id, following.id]


def test_one_command_ends_the_running_and_the_waiting_ones(worker: Worker, gate: Gate) -> None:
    several = [worker.run("loop") for _ in range(4)]
    until("one runs", lambda: gate.begun, WAIT)
    said = worker.revoke(*several)
    assert all(one.id in said["ok"] for one in several)
    assert all(map(revoked, several)) and worker.run("pass").get(timeout=WAIT) == "ended"
    assert gate.begun[0] in {one.id for one in several} and len(gate.begun) == 2


def test_a_call_that_waits_ends_first(worker: Worker, gate: Gate) -> None:
    waiting = worker.run("wait")
    until("it waits", lambda: gate.begun, WAIT)
    worker.revoke(waiting)
    until("it was told", lambda: len(watch.running) == 1, WAIT)  # its time limit
    assert worker.request in state.active_requests and not waiting.ready()
    gate.open.set()
    assert revoked(waiting) and not gate.ended


def test_who_goes_on_all_the_same_has_its_outcome(worker: Worker, gate: Gate) -> None:
    stubborn = worker.run("stubborn")
    until("it runs", lambda: gate.begun, WAIT)
    worker.revoke(stubborn)
    until("it was told", lambda: len(watch.running) == 1, WAIT)  # its time limit
    gate.open.set()
    assert stubborn.get(timeout=WAIT) == "ended"


def test_what_celery_does_after_the_task_is_not_cut_short(worker: Worker, gate: Gate) -> None:
    """It stores its result, sends its signals, and logs. If this were interrupted, the task would have no valid outcome."""
    steps: list[str] = []

    def succeeded(**_: Any) -> None:
        steps.append("begun")
        _loop()
        steps.append("ended")

    signals.task_success.connect(succeeded)
    done = worker.run("pass")
    until("its success is told", lambda: steps, WAIT)
    worker.revoke(done)
    for one in list(watch.running):
        if not one.due:  # it would come now
            watch._strike(one)
    following = worker.run("pass")
    gate.open.set()
    assert following.get(timeout=WAIT) == "ended" and done.state == "SUCCESS"
    signals.task_success.disconnect(succeeded)
    assert steps == ["begun", "ended"] * 2


def test_a_task_that_was_called_as_a_function_ends_with_its_caller(worker: Worker, gate: Gate) -> None:
    calling = worker.run("calls")
    until("both run", lambda: len(gate.begun) == 2, WAIT)
    worker.revoke(calling)
    assert revoked(calling) and not gate.ended


def test_one_that_takes_a_lock_for_its_caller_is_ended_later() -> None:
    """Such as the lock of a log handler, on which all threads wait. Before Python 3.13 it would never be released."""
    lock, taken, over = threading.Lock(), threading.Event(), threading.Event()
    found: list[Any] = []
    held = [True]

    def acquire() -> None:
        lock.acquire()
        taken.set()
        while held:  # calls nothing, so that this function is on top of the stack
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


def test_who_leaves_while_it_is_on_its_way_waits_for_it() -> None:
    begun, leave = threading.Event(), threading.Event()
    found: list[Any] = []
    astray: list[BaseException] = []

    def work() -> None:
        try:
            with suppress(Terminated), Interrupt(60, Terminated()) as one:
                found.append(one)
                begun.set()
                leave.wait(WAIT)
            begun.set()
            while not found[1:]:  # whatever the thread does next
                pass
        except Terminated as error:
            astray.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait(WAIT)
    begun.clear()
    with watch._striking:  # the steps of _strike()
        assert watch.remove(found[0])
        leave.set()
        assert not begun.wait(0.2), "it went on"
        kind: Any = Terminated
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(found[0].thread), ctypes.py_object(kind))
    assert begun.wait(WAIT)
    found.append("enough")
    thread.join(WAIT)
    assert not astray


def test_what_comes_about_the_end_of_a_task_reaches_that_task_or_nobody() -> None:
    """Each of many short tasks of a thread is terminated about when it ends. No other task is affected."""
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
