"""arq: `arq bench.peers.arqs.Worker`. A job stays queued while it runs, and its result is stored."""

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

from arq import create_pool, func
from arq.connections import RedisSettings

from bench.peers.work import WORK

settings = RedisSettings.from_dsn(os.environ["BROKER_URL"])


def _job(work: Callable[[str], int]) -> Any:
    async def job(_: Any, text: str) -> int:
        return work(text)

    return job


class Worker:
    functions = [func(_job(work), name=name) for name, work in WORK.items()]  # noqa: RUF012
    redis_settings = settings
    max_jobs = 50


async def send(number: int, work: str, text: str) -> None:
    pool = await create_pool(settings)
    for start in range(0, number, 100):
        await asyncio.gather(*(pool.enqueue_job(work, text) for _ in range(min(100, number - start))))


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
