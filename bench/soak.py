"""A worker that goes on and on: what it and its servers hold in the first tenth of the tasks, and in the last."""

import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.contenders import Contender
from bench.rounds import LONGEST, ROOT, Case, NothingDoneError, environment, members, running, used
from bench.servers import Place, Servers

PARTS = 10


def held(place: Place, sessions: list[int]) -> dict[str, int]:
    """Memory in bytes and open files of the worker's processes, connections to Redis, keys beside the results."""
    files = 0
    for fields in members(sessions):
        with suppress(OSError):
            files += sum(1 for _ in Path(f"/proc/{fields[0]}/fd").iterdir())
    return {
        "memory": used(sessions)[1],
        "files": files,
        "connections": int(place.results.info("clients")["connected_clients"]),
        "keys": int(place.redis.dbsize()) - (int(place.results.dbsize()) if place.redis is place.results else 0),
    }


def soak(servers: Servers, contender: Contender, case: Case, tasks: int) -> dict[str, Any]:
    """Send and run so many tasks. Gives tasks/s and what was held, in the first and the last tenth."""
    with servers.place() as place:
        environ = environment(contender, place, case)
        seen, done, began = [], 0, time.monotonic()
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
                seen.append(held(place, sessions))
        rate = tasks / (time.monotonic() - began)
    first, last = seen[0], seen[-1]
    return {"rate": rate, "tasks": tasks, "first": first, "last": last}
