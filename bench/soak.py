"""A long run of one worker: memory and resources of the worker and its servers after each tenth of the tasks."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contenders import Contender
from bench.rounds import LONGEST, ROOT, Case, NothingDoneError, environment, members, running
from testbed.places import Place, Servers

PARTS = 10
#: Seconds until the last acknowledgements of a part show on the broker: they are batched, and RabbitMQ counts every 5 s.
REST = 15.0


def memory(process: str) -> int:
    """The proportional set size of a process in bytes; 0 if it has exited."""
    with suppress(OSError):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def held(place: Place, sessions: list[int]) -> dict[str, int]:
    """Memory in bytes and open files of all of the worker's processes, and resources that its servers hold for it.

    `connections`: to the broker. `results_connections`: to Redis, if it only stores results. `queues` and `messages`: on the
    broker; Redis has a key for each queue that is not empty. `keys`: in Redis, besides the results.
    """
    processes = [fields[0] for fields in members(sessions)]
    files = 0
    for process in processes:
        with suppress(OSError):
            files += sum(1 for _ in Path(f"/proc/{process}/fd").iterdir())
    keys = sum(not name.startswith(b"celery-task-meta-") for name in place.results.scan_iter(count=10_000))
    return {
        "memory": sum(map(memory, processes)),
        "files": files,
        "results_connections": int(place.results.info("clients")["connected_clients"]),
        "keys": keys + (int(place.redis.dbsize()) if place.redis is not place.results else 0),
        **place.broker(),
    }


def soak(servers: Servers, contender: Contender, case: Case, tasks: int) -> dict[str, Any]:
    """Send and run `tasks` tasks. Returns tasks/s, :func:`held` after the first and last tenth, and memory after each."""
    with servers.place() as place:
        environ = environment(contender, place, case)
        seen, done, rested, began = [], 0, 0.0, time.monotonic()
        with running(contender, place, case, environ) as sessions:
            for part in range(1, PARTS + 1):
                send = [*contender.send, str(tasks // PARTS), case.work, str(case.size)]
                subprocess.run(send, cwd=ROOT, env=environ, check=True, capture_output=True)
                moved = time.monotonic()
                while (now := contender.done(place, 0)) < part * (tasks // PARTS):
                    if now != done:
                        done, moved = now, time.monotonic()
                    if time.monotonic() - moved > LONGEST:
                        raise NothingDoneError(f"{contender.name}: {now} of {part * (tasks // PARTS)} tasks have a result")
                    time.sleep(0.05)
                rest = time.monotonic()
                while place.broker()["messages"] and time.monotonic() < rest + REST:
                    time.sleep(0.2)
                rested += time.monotonic() - rest
                seen.append(held(place, sessions))
        rate = tasks / (time.monotonic() - began - rested)
    return {
        "rate": rate, "tasks": tasks, "first": seen[0], "last": seen[-1], "memory": [part["memory"] for part in seen],
    }  # fmt: skip
