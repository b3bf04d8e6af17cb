"""The table of faults: what each does to a setup under load, and how it is undone."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from tests.faults import malformed
from tests.faults.setup import GRACE, Setup
from tests.harness.waiting import until

#: Reasons for which at-least-once delivery runs a task again that was done.
DELIVERED_AGAIN = "the broker gives to another worker what it believes lost: a connection ended before the acknowledgement"
TIMED_OUT = "the acknowledgement comes after the worker was taken for dead, or with a connection that is gone"


@dataclass(frozen=True)
class Fault:
    """`happens(setup)`: a context; entering it makes the fault, leaving it undoes it. `seconds`: how long it lasts.

    `pools`, `brokers`: where it exists; empty: everywhere. `repeats`: why a task may be done twice, or empty: none may.
    `linked`: the workers reach the broker over the link with faults. `clock`: their wall clocks can be set.
    `results_may_go`: why results may be lost by it, or empty: none may.
    """

    name: str
    what: str
    happens: Callable[[Setup], AbstractContextManager[Any]]
    seconds: float = 0.0
    pools: tuple[str, ...] = ()
    brokers: tuple[str, ...] = ()
    repeats: str = ""
    linked: bool = False
    clock: bool = False
    results_may_go: str = ""

    def fits(self, broker: str, pool: str) -> bool:
        return (not self.brokers or broker in self.brokers) and (not self.pools or pool in self.pools)


def _hold(seconds: float) -> None:
    """Keep the fault for its duration. This is no wait for a condition."""
    time.sleep(seconds)  # how long the fault lasts


@contextmanager
def worker_sigkill(setup: Setup) -> Iterator[None]:
    setup.workers["one"].kill(signal="KILL")
    yield
    setup.start("one", setup.linked["one"])


@contextmanager
def child_sigkill(setup: Setup) -> Iterator[None]:
    children = "import os, signal\nfor pid in map(int, filter(str.isdigit, os.listdir('/proc'))):\n"
    kill = " if pid not in (1, os.getpid()):\n  os.kill(pid, signal.SIGKILL)"
    setup.workers["one"].exec_run(["python", "-c", children + kill])
    yield


@contextmanager
def worker_oom(setup: Setup) -> Iterator[None]:
    setup.send(setup.app(), "faults.hog")
    until("the hog runs", lambda: any(line.kind == "hog" for line in setup.ledger.lines()), 60)
    yield


@contextmanager
def worker_sigterm(setup: Setup) -> Iterator[None]:
    setup.stop("one")
    yield
    setup.start("one", setup.linked["one"])


@contextmanager
def rolling_restart(setup: Setup) -> Iterator[None]:
    for name in ("one", "two"):
        setup.stop(name)
        setup.start(name)
        setup.wait_for(name)
    yield


@contextmanager
def scale(setup: Setup) -> Iterator[None]:
    setup.stop("two")
    for name in ("two", "three"):
        setup.start(name)
    for name in ("two", "three"):
        setup.wait_for(name)
    for name in ("two", "three"):
        setup.stop(name)
    yield


@contextmanager
def broker_restart(setup: Setup) -> Iterator[None]:
    setup.broker.stop(timeout=60)
    yield
    setup.broker.start()
    setup.wait_for_servers()


@contextmanager
def broker_sigkill(setup: Setup) -> Iterator[None]:
    setup.broker.kill(signal="KILL")
    yield
    setup.broker.start()
    setup.wait_for_servers()


@contextmanager
def broker_frozen(setup: Setup) -> Iterator[None]:
    setup.broker.pause()
    yield
    setup.broker.unpause()


@contextmanager
def cut_workers_from_broker(setup: Setup) -> Iterator[None]:
    with setup.without(setup.broker_network):
        yield


@contextmanager
def cut_workers_from_results(setup: Setup) -> Iterator[None]:
    with setup.without(setup.results_network):
        yield


def link(which: str, state: str) -> Callable[[Setup], AbstractContextManager[None]]:
    @contextmanager
    def happens(setup: Setup) -> Iterator[None]:
        setup.set_link(which, state)
        yield
        setup.set_link(which, "open")

    return happens


@contextmanager
def half_open(setup: Setup) -> Iterator[None]:
    """Existing connections stay dead, as behind a firewall that has lost its state. This is never undone."""
    setup.set_link("workers", "half-open")
    yield
    setup.set_link("workers", "half-open-for-good")


@contextmanager
def results_restart(setup: Setup) -> Iterator[None]:
    setup.results.stop(timeout=30)
    yield
    setup.results.start()
    setup.wait_for_servers()


@contextmanager
def results_sigkill(setup: Setup) -> Iterator[None]:
    setup.results.kill(signal="KILL")
    yield
    setup.results.start()
    setup.wait_for_servers()


@contextmanager
def disk_full(setup: Setup) -> Iterator[None]:
    fill = (
        "import os\nfile = open('/disk/filler', 'wb', buffering=0)\n"
        "free = lambda: os.statvfs('/disk').f_bavail * os.statvfs('/disk').f_frsize\n"
        f"leave = {setup.server.faults.leave}\n"
        "try:\n while free() > leave:\n  file.write(b'x' * min(1 << 20, max(1, free() - leave)))\n"
        "except OSError:\n pass"
    )
    setup.link.exec_run(["python3", "-c", fill], user="root")
    yield
    setup.link.exec_run(["rm", "-f", "/disk/filler"], user="root")


@contextmanager
def memory_full(setup: Setup) -> Iterator[None]:
    begin, end = setup.server.faults.memory
    assert setup.broker.exec_run(list(begin)).exit_code == 0
    yield
    assert setup.broker.exec_run(list(end)).exit_code == 0


@contextmanager
def no_connections(setup: Setup) -> Iterator[None]:
    takes = setup.server.faults.no_connections(setup.port)
    yield
    takes()


@contextmanager
def same_name_twice(setup: Setup) -> Iterator[None]:
    setup.start("three", hostname="one")
    _hold(8)  # it starts, or refuses to
    yield
    setup.stop("three")  # not by SIGKILL, which is a separate fault


@contextmanager
def beat_sigkill(setup: Setup) -> Iterator[None]:
    with ExitStack() as undo:
        beat = setup.beat()
        undo.callback(beat.remove, force=True, v=True)
        setup.wait_for_tick(time.monotonic())
        beat.kill(signal="KILL")
        yield
        again = setup.beat("again")
        undo.callback(again.remove, force=True, v=True)
        setup.wait_for_tick(time.monotonic())


@contextmanager
def malformed_messages(setup: Setup) -> Iterator[None]:
    url = setup.url("127.0.0.1", setup.link_port)
    malformed.send(url, 200)
    yield


@contextmanager
def clock_step(setup: Setup) -> Iterator[None]:
    setup.set_clock("one", 3600)
    yield
    setup.set_clock("one", 0)


FAULTS: tuple[Fault, ...] = (
    Fault("worker_sigkill", "a worker dies by SIGKILL", worker_sigkill, 2, repeats=DELIVERED_AGAIN),
    Fault("child_sigkill", "a worker's children die by SIGKILL", child_sigkill, 0, ("prefork",), repeats=DELIVERED_AGAIN),
    Fault("worker_oom", "a task takes all memory: the kernel kills its process", worker_oom, 5, repeats=DELIVERED_AGAIN),
    Fault("worker_sigterm", f"a worker is stopped with {GRACE} s of grace, then started", worker_sigterm),
    Fault("rolling_restart", "each worker in turn is stopped and started", rolling_restart),
    Fault("scale", "two workers become one, three, one", scale),
    Fault("broker_restart", "the broker is stopped and started", broker_restart, 3, repeats=DELIVERED_AGAIN),
    Fault("broker_sigkill", "the broker dies by SIGKILL and is started", broker_sigkill, 3, repeats=DELIVERED_AGAIN),
    Fault("broker_frozen", "the broker's processes are frozen", broker_frozen, 30, repeats=TIMED_OUT),
    Fault("cut_workers_from_broker", "no packet between workers and broker", cut_workers_from_broker, 15, repeats=TIMED_OUT),
    Fault("cut_producer_from_broker", "no byte between producer and broker", link("producer", "dark"), 15, repeats=TIMED_OUT),
    Fault("cut_workers_from_results", "no packet between workers and results", cut_workers_from_results, 15, repeats=TIMED_OUT),
    Fault("half_open", "what is connected is dead, and nobody is told", half_open, 5, repeats=TIMED_OUT, linked=True),
    Fault("slow_network", "0.1 s late, both ways", link("workers", "slow"), 15, linked=True),
    Fault("results_restart", "the results server is stopped and started", results_restart, 3),
    Fault(
        "results_sigkill", "the results server dies by SIGKILL and is started", results_sigkill, 3,
        results_may_go="its file is written each second: what was written in the last one is gone",
    ),
    Fault("disk_full", "the broker's disk is full", disk_full, 10, repeats=TIMED_OUT),
    Fault("memory_full", "memory alarm, or maxmemory reached", memory_full, 10, repeats=TIMED_OUT),
    Fault("no_connections", "the broker ends all connections, takes no new one", no_connections, 10, repeats=DELIVERED_AGAIN),
    Fault("same_name_twice", "a second worker comes up under a name that is taken", same_name_twice),
    Fault("beat_sigkill", "beat dies by SIGKILL and is started", beat_sigkill, 2),
    Fault("malformed_messages", "200 malformed messages of 20 sorts in the queue", malformed_messages, 3),
    Fault("clock_step", "a worker's clock is set an hour ahead, then back", clock_step, 15, clock=True),
)  # fmt: skip
