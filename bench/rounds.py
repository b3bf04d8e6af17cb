"""One round: fill a queue, start workers, and measure the throughput of results."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import Contender
from bench.peers.work import FAILING
from celery_kit.operate.stacks.passwords import monitor_password
from testbed.places import Place, Servers

ROOT = Path(__file__).parents[1]
#: Tasks, or seconds, that are not counted: a worker's first window of prefetched messages is not its steady throughput.
WARM, WARM_SECONDS = 500, 4.0
LONGEST = 60.0  # seconds until the first result
#: Seconds between two counts of the results. Each is a command of Redis, and is included in the number of commands.
LOOK, CLOSE_LOOK = 0.02, 0.005
#: The services of MONITOR=1.
MONITOR = ("flower", "exporter", "prometheus")
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
CPU_CLOCK = 2  # CPUCLOCK_SCHED


class NothingDoneError(RuntimeError):
    """No result arrived, or some results that were counted cannot be read."""


@dataclass(frozen=True)
class Case:
    """A case: `size` in bytes a task, `depth` in tasks in the queue (0: enough for the round), number of `workers`, `rate` in
    tasks/s that arrive (0: all of them are there).
    """

    broker: str
    pool: str
    work: str = "noop"
    size: int = 100
    depth: int = 0
    workers: int = 1
    rate: int = 0


@dataclass(frozen=True)
class Figures:
    """tasks/s; the workers' CPU in microseconds a task, and memory in bytes; seconds to the first result; reads of Redis from
    clients, a task; tasks that were counted.
    """

    rate: float
    cpu: float
    memory: float
    first: float
    trips: float
    tasks: int


def members(sessions: list[int]) -> Iterator[list[str]]:
    """The id of each process in these sessions, with the fields of /proc/PID/stat after its state."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) in sessions:
            yield [path.parent.name, *fields[1:]]


def processor_time(pid: int) -> float:
    """CPU time of a process in seconds, to the nanosecond: of all of its threads, including those that have ended.

    /proc/PID/stat counts in units of 10 ms, and an idle worker needs ten seconds or more for one. Raises OSError if the
    process has exited. Source: clock_getcpuclockid(3); linux/posix-timers.h, make_process_cpuclock.
    """
    return time.clock_gettime((~pid << 3) | CPU_CLOCK)


def used(sessions: list[int]) -> tuple[float, int]:
    """CPU in seconds and resident memory in bytes of all processes in these sessions."""
    cpu, memory = 0.0, 0
    for pid, *fields in members(sessions):
        with suppress(OSError):
            cpu += processor_time(int(pid)) + sum(map(int, fields[12:14])) / TICKS  # and that of its children that have exited
            memory += int(fields[20]) * PAGE
    return cpu, memory


@contextmanager
def running(contender: Contender, place: Place, case: Case, environ: dict[str, str]) -> Iterator[list[int]]:
    """Start workers, each in its own session, and kill them at the end of the block. Yields the sessions.

    They write their logs to a pipe, as in a container, where the engine reads it.
    """
    if contender.contained:
        with in_containers(contender, place, case) as sessions:
            yield sessions
        return
    with tempfile.TemporaryFile() as log, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log) as engine:
        pipe = engine.stdin
        started = [
            subprocess.Popen(
                contender.worker(case.pool, number), cwd=ROOT, env=environ, stdout=pipe, stderr=pipe, start_new_session=True
            )
            for number in range(case.workers)
        ]
        try:
            yield [one.pid for one in started]
        except NothingDoneError as error:
            log.seek(0)
            raise NothingDoneError(f"{error}; the worker said: {log.read()[-2000:].decode(errors='replace')}") from None
        finally:
            for one in started:
                one.terminate()
            for one in started:
                with suppress(subprocess.TimeoutExpired):
                    one.wait(10)
                with suppress(ProcessLookupError):
                    os.killpg(one.pid, signal.SIGKILL)  # the remaining processes of its session
                one.wait()


@contextmanager
def in_containers(contender: Contender, place: Place, case: Case) -> Iterator[list[int]]:
    """The same in containers of the stack's service `worker`, as `make up` would start them for these servers."""
    own = {**contender.environ(place), **contender.settings, "PYTHONWARNINGS": "ignore"}
    given = [word for name, value in own.items() for word in ("--env", f"{name}={value}")]
    stack, names = place.stack, [f"{place.stack.project}-bench{number}" for number in range(case.workers)]
    stack.environ |= {"POOL": case.pool, **contender.environ(place)}
    try:
        if contender.monitored:
            monitor_password()
            stack.run("--profile", "monitor", "up", "--build", "--detach", "--wait", *MONITOR)
        for number, name in enumerate(names):
            about = ("--name", name, "--volume", f"{ROOT / 'bench'}:/srv/bench:ro", *given)
            stack.run("run", "--detach", "--no-deps", *about, "worker", *contender.worker(case.pool, number))
        yield [int(docker("inspect", "--format", "{{.State.Pid}}", name)) for name in names]
    except NothingDoneError as error:
        raise NothingDoneError(f"{error}; the worker said: {docker('logs', '--tail', '20', names[0])}") from None
    finally:
        docker("rm", "--force", *names)
        if contender.monitored:
            stack.run("--profile", "monitor", "rm", "--stop", "--force", *MONITOR)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def starting(contender: Contender, place: Place, case: Case) -> Iterator[tuple[list[int], float]]:
    """Start a worker with one task in its queue. Yields the sessions, and the seconds from its start to that task's result."""
    environ = environment(contender, place, case)
    subprocess.run([*contender.send, "1", case.work, str(case.size)], cwd=ROOT, env=environ, check=True, capture_output=True)
    started = time.monotonic()
    with running(contender, place, case, environ) as sessions:
        done, first = _until(contender, place, 1, 1, started + LONGEST, CLOSE_LOOK)
        if not done:
            raise NothingDoneError(f"{contender.name}: no result within {LONGEST:g} s")
        yield sessions, first - started


def environment(contender: Contender, place: Place, case: Case) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("BROKER", "BACKEND", "POOL", "ENGINE")}
    return {**kept, **contender.environ(place), **contender.settings, "POOL": case.pool, "PYTHONWARNINGS": "ignore"}


def consume(servers: Servers, contender: Contender, case: Case, seconds: float) -> Figures:
    """Measure for some seconds, or until the queue is empty. Raises NothingDoneError."""
    with servers.place() as place:
        environ = environment(contender, place, case)
        number = case.depth or int(contender.most * case.workers * min(1.0, seconds / 4))
        send = [*contender.send, str(number), case.work, str(case.size)]
        subprocess.run(send, cwd=ROOT, env=environ, check=True, capture_output=True)
        started = time.monotonic()
        with running(contender, place, case, environ) as sessions:
            done, first = _until(contender, place, number, 1, started + LONGEST)
            if not done:
                raise NothingDoneError(f"{contender.name}: no result within {LONGEST:g} s")
            done, _ = _until(contender, place, number, min(WARM, number // 5), first + WARM_SECONDS)
            begin, before, trips, cpu = time.monotonic(), done, place.trips(), used(sessions)[0]
            done, end = _until(contender, place, number, number, begin + seconds)
            spent, memory = used(sessions)
            tasks = max(done - before, 1)
            figures = Figures(
                rate=tasks / (end - begin), cpu=(spent - cpu) / tasks * 1e6, memory=memory, first=first - started,
                trips=(place.trips() - trips) / tasks, tasks=done - before,
            )  # fmt: skip
        # Several processes count their failures apart.
        expected = done * (1 - 1.1 * FAILING.get(case.work, 0.0))
        if contender.read and (readable := contender.read(place)) < expected:
            raise NothingDoneError(f"{contender.name}: {done} results were counted, {readable} can be read")
        return figures


def _until(
    contender: Contender, place: Place, number: int, enough: int, deadline: float, every: float = LOOK
) -> tuple[int, float]:
    """Wait for a number of results. Returns how many there are, and the time of that count."""
    while True:
        done, now = contender.done(place, number), time.monotonic()
        if done >= enough or now > deadline:
            return done, now
        time.sleep(every)
