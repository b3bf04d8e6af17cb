"""repid: `python -m bench.peers.repids`. Acknowledged after the actor, on streams; it stores no results."""

import asyncio
import os
import sys
from multiprocessing import Process
from typing import Any

from repid import Repid, Router
from repid.connections.redis import RedisServer

from bench.peers.work import WORK

app: Any = Repid()
app.servers.register_server("broker", RedisServer(os.environ["BROKER_URL"]), is_default=True)
router: Any = Router()


@router.actor(channel="bench", name="run")
async def run(work: str, text: str) -> int:
    return WORK[work](text)


app.include_router(router)


async def send(number: int, work: str, text: str) -> None:
    async with app.servers.get_server().connection():
        for start in range(0, number, 100):
            each = {"channel": "bench", "payload": {"work": work, "text": text}, "headers": {"topic": "run"}}
            await asyncio.gather(*(app.send_message_json(**each) for _ in range(min(100, number - start))))


async def consume() -> None:
    async with app.servers.get_server().connection():
        await app.run_worker()


def main() -> None:
    if len(sys.argv) > 2:
        asyncio.run(send(int(sys.argv[1]), sys.argv[2], "x" * int(sys.argv[3])))
        return
    for _ in range(int(sys.argv[1]) - 1):
        Process(target=lambda: asyncio.run(consume()), daemon=True).start()
    asyncio.run(consume())


if __name__ == "__main__":
    main()
