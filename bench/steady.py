"""Tasks that arrive at a rate, as in a stack at work: what one costs then, and how long it waits. `make plan` stands on this.

A worker with a full queue fetches, stores and acknowledges many tasks at once. At a tenth of that rate it does so for each, and
one task costs several times as much.
"""

import json
import statistics
import subprocess
import time
from typing import Any

from bench.arrivals import Load
from bench.contenders import PYTHON, Contender
from bench.rounds import ROOT, Case, NothingDoneError, environment, starting, used
from testbed.places import Place, Servers

#: Seconds until the last results are there, after the last task was sent.
LATE = 60.0
#: Messages of a backlog, by bytes a message: enough for memory that is theirs, too few for an append-only file to be rewritten.
BACKLOGS = {10_000: 2_000, 100: 20_000}


def steady(servers: Servers, contender: Contender, case: Case, load: Load) -> dict[str, Any]:
    """The figures of a load after its warm-up: the rate of results in tasks/s; the workers' and each server's CPU in
    microseconds a task; the p50 and p95 of the wait from sending to the task's first line, in ms; memory in bytes.

    Raises NothingDoneError if a task has no result.
    """
    with servers.place() as place, starting(contender, place, case) as (sessions, _):
        argv = [PYTHON, "-m", "bench.arrivals", *map(str, (load.rate, load.seconds, load.time, load.cpu, load.size))]
        own = environment(contender, place, case)
        with subprocess.Popen(argv, cwd=ROOT, env=own, stdout=subprocess.PIPE, text=True) as producer:
            assert producer.stdout
            producer.stdout.readline()
            parties = {"cpu": sessions, **{name: [pid] for name, pid in roots(servers).items()}}
            before = {name: used(its)[0] for name, its in parties.items()}
            sent = json.loads(producer.stdout.readline())
        warm, counted = sent["warm"], sent["counted"]
        _until_stored(place, contender, 1 + warm + counted)
        spent, seconds = {name: used(its)[0] - before[name] for name, its in parties.items()}, time.time() - sent["since"]
        memory, deadline = used(sessions)[1], time.monotonic() + LATE
        while len(waits := _waits(place, sent["since"])) < counted:  # the last ones have begun, and no more than that is stored
            if time.monotonic() > deadline:
                raise NothingDoneError(f"{contender.name}: {len(waits)} of {counted} tasks have a result")
    figures = {name: value / counted * 1e6 for name, value in spent.items()}
    return figures | {
        "rate": counted / seconds, "sent": counted / sent["seconds"], "memory": memory, "tasks": counted,
        "p50": statistics.median(waits) * 1e3, "p95": statistics.quantiles(waits, n=20)[-1] * 1e3,
    }  # fmt: skip


def roots(servers: Servers) -> dict[str, int]:
    """By name of a server of the stack, its first process, which is the session of all of them."""
    names = dict.fromkeys(("broker", servers.stack.results))
    return {name: int(servers.stack.container(name).attrs["State"]["Pid"]) for name in names}


def _until_stored(place: Place, contender: Contender, number: int) -> None:
    deadline = time.monotonic() + LATE
    while (done := contender.done(place, number)) < number:
        if time.monotonic() > deadline:
            raise NothingDoneError(f"{contender.name}: {done} of {number} results")
        time.sleep(0.01)


def _waits(place: Place, since: float) -> list[float]:
    """The waits that the tasks have measured, in seconds, of those that were sent at `since` or later."""
    names = list(place.results.scan_iter("celery-task-meta-*", count=10_000))
    kept = [one for start in range(0, len(names), 1_000) for one in place.results.mget(names[start : start + 1_000])]
    found = [json.loads(one)["result"] for one in kept if one]
    return [wait for sent, wait in (one for one in found if isinstance(one, list)) if sent >= since]


def backlog(servers: Servers, contender: Contender, case: Case) -> dict[str, Any]:
    """What a server holds for a message and for a result, in bytes: memory and files of the broker a message that waits, memory
    of the results server a result. And each server's CPU a task in microseconds, sent and done as fast as one worker can, with
    the rate of that in tasks/s.
    """
    number = BACKLOGS[case.size]
    with servers.place() as place:
        environ = environment(contender, place, case)
        memory, files = _memory(servers), _files(servers)
        before = {name: used([pid])[0] for name, pid in roots(servers).items()}
        argv = [*contender.send, str(number), case.work, str(case.size)]
        subprocess.run(argv, cwd=ROOT, env=environ, check=True, capture_output=True)
        held = {"message": (_memory(servers) - memory) / number, "disk": (_files(servers) - files) / number}
        with starting(contender, place, case):
            began, done = time.monotonic(), contender.done(place, number)
            _until_stored(place, contender, number)
            rate = (number - done) / (time.monotonic() - began)
        spent = {name: (used([pid])[0] - before[name]) / number * 1e6 for name, pid in roots(servers).items()}
        # Each result is a key; the client's and the server's own buffers are not of them.
        kept = list(place.results.scan_iter("celery-task-meta-*", count=1_000))[:1_000]
        result = statistics.mean(int(place.results.memory_usage(one)) for one in kept)
    return held | spent | {"result": result, "empty": memory, "rate": rate, "tasks": number}


def _memory(servers: Servers) -> int:
    return used([roots(servers)["broker"]])[1]


def _files(servers: Servers) -> int:
    """The bytes of the broker's data, as its file system counts them."""
    broker = servers.stack.container("broker")
    folder = next(one["Destination"] for one in broker.attrs["Mounts"] if one.get("Name", "").endswith("-data"))
    return int(broker.exec_run(["du", "-s", "-B1", folder]).output.split()[0])
