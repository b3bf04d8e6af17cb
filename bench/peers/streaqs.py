"""streaq: `streaq run bench.peers.streaqs:worker`. Acknowledged after the task, on streams; results are stored."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from streaq import Worker

from bench.peers.work import WORK

worker: Any = Worker(redis_url=os.environ["BROKER_URL"], queue_name="bench", concurrency=50)


def _task(name: str, work: Callable[[str], int]) -> Any:
    async def task(text: str) -> int:
        return work(text)

    return worker.task(name=name)(task)


tasks = {name: _task(name, work) for name, work in WORK.items()}


async def send(number: int, work: str, text: str) -> None:
    async with worker:
        for start in range(0, number, 500):
            await worker.enqueue_many([tasks[work].enqueue(text) for _ in range(min(500, number - start))])


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
