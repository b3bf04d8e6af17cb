"""saq: `saq bench.peers.saqs.settings`. A job stays on a list while it runs, and its result is stored in it."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from saq import Queue

from bench.peers.work import WORK

queue = Queue.from_url(os.environ["BROKER_URL"], name="bench")


def _job(work: Callable[[str], int]) -> Any:
    async def job(_: Any, *, text: str) -> int:
        return work(text)

    return job


settings = {"queue": queue, "functions": [(name, _job(work)) for name, work in WORK.items()], "concurrency": 50}


async def send(number: int, work: str, text: str) -> None:
    await queue.connect()
    for start in range(0, number, 100):
        await asyncio.gather(*(queue.enqueue(work, text=text) for _ in range(min(100, number - start))))
    await queue.disconnect()


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
