"""faststream: `faststream run bench.peers.faststreams:app`. Acknowledged after the handler, on streams; no results stored."""

import asyncio
import os
import sys
from typing import Any

from faststream import FastStream
from faststream.redis import RedisBroker, StreamSub
from redis.asyncio import Redis

from bench.peers.work import WORK

broker: Any = RedisBroker(os.environ["BROKER_URL"])
app = FastStream(broker)
stream = StreamSub("bench", group="bench", consumer=str(os.getpid()), last_id=">", max_records=50)


@broker.subscriber(stream=stream, max_workers=1)
async def handle(message: dict[str, str]) -> None:
    WORK[message["work"]](message["text"])


async def send(number: int, work: str, text: str) -> None:
    await broker.connect()
    # A group that a worker makes sees only what comes later.
    await Redis.from_url(os.environ["BROKER_URL"]).xgroup_create("bench", "bench", id="0", mkstream=True)
    for start in range(0, number, 100):
        some = min(100, number - start)
        await asyncio.gather(*(broker.publish({"work": work, "text": text}, stream="bench") for _ in range(some)))
    await broker.stop()


if __name__ == "__main__":
    asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
