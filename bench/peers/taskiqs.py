"""taskiq: `taskiq worker bench.peers.taskiqs:broker`. Acknowledged after the task: streams on Redis, or aio-pika."""

import asyncio
import os
import sys
from typing import Any

from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench.peers.work import WORK

_url = os.environ["BROKER_URL"]
broker: Any = RedisStreamBroker(_url) if _url.startswith("redis") else AioPikaBroker(_url)
broker = broker.with_result_backend(RedisAsyncResultBackend(os.environ["RESULTS_URL"]))
tasks = {name: broker.task(task_name=name)(work) for name, work in WORK.items()}


async def send(number: int, work: str, text: str) -> None:
    await broker.startup()
    for start in range(0, number, 100):
        await asyncio.gather(*(tasks[work].kiq(text) for _ in range(min(100, number - start))))
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
