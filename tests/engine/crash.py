"""What SIGKILLs cost: `python -m tests.engine.crash [tasks] [kills] [pool …]`, on the fast engine and on plain Celery.

Each round sends so many quick tasks, kills a worker amid them so many times, and lets a last one finish. A task without a
result once nothing is queued or unacknowledged any more, or has not been restored a minute later, is lost.
"""

import sys
from contextlib import suppress
from functools import partial
from uuid import uuid4

from tests.engine.rig import PLAIN_CELERY, Server, Worker, done, producer, send
from tests.wait import until


def crash(server: Server, pool: str, engine: str, tasks: int, kills: int) -> tuple[int, int]:
    """Gives (lost, killed)."""
    queue, killed = uuid4().hex[:8], 0
    ids = send(producer(server), queue, tasks)
    for number in range(1, kills + 1):
        worker = Worker(server, pool, engine, queue, VISIBILITY="3")
        goal = tasks * number // (kills + 2)
        try:
            until("it works", partial(_reached, server, ids, goal), 120)
            killed += server.broker.llen(queue) > 0
        finally:
            worker.kill()
    last = Worker(server, pool, engine, queue, VISIBILITY="3")
    try:
        with suppress(AssertionError):  # plain green pools never restore what they held
            until("nothing is left", lambda: not server.broker.llen(queue) and not server.broker.hlen("unacked"), 60)
    finally:
        last.stop()
        server.broker.flushdb()
    return tasks - done(server, ids), killed


def _reached(server: Server, ids: list[str], goal: int) -> bool:
    return done(server, ids) >= goal


def main() -> None:
    tasks, kills = (int(number) for number in [*sys.argv[1:3], "3000", "10"][:2])
    server = Server()
    try:
        for pool in sys.argv[3:] or ("solo", "prefork", "gevent"):
            for engine in ("fast", PLAIN_CELERY):
                lost, killed = crash(server, pool, engine, tasks, kills)
                print(f"{pool} {engine}: {lost} of {tasks} lost in {killed} SIGKILLs", flush=True)
    finally:
        server.stop()


if __name__ == "__main__":
    main()
