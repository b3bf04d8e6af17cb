"""A TCP proxy with faults: `python link.py NAME:PORT:HOST:PORT…`, in a container of its own between a client and a server.

The file `link.NAME` in /data, or in the folder LINKS, has the state of that link: `open`, `slow` (each chunk is 0.1 s late in
both directions), `half-open` (existing connections stall for good, new ones work) or `dark` (nothing passes, nothing is
refused).
"""

import asyncio
import os
import sys
from pathlib import Path

LATE = 0.1  # seconds
FOLDER = Path(os.environ.get("LINKS", "/data"))
HOST = os.environ.get("LINKS_HOST", "0.0.0.0")  # it runs alone in a container


class Link:
    def __init__(self, name: str, host: str, port: int) -> None:
        self.file, self.host, self.port = FOLDER / f"link.{name}", host, port
        self.state, self.stalled = "open", 0
        self.opened = 0

    async def watch(self) -> None:
        while True:
            state = self.file.read_text().strip() if self.file.exists() else "open"
            if state == "half-open" and self.state != "half-open":
                self.stalled = self.opened  # existing connections
            self.state = state or self.state
            await asyncio.sleep(0.05)

    async def pump(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while piece := await source.read(65536):
                while self.state == "dark" or number <= self.stalled:
                    await asyncio.sleep(0.05)
                if self.state == "slow":
                    await asyncio.sleep(LATE)
                sink.write(piece)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        while self.state == "dark":
            await asyncio.sleep(0.05)
        try:
            far_reader, far_writer = await asyncio.open_connection(self.host, self.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(self.pump(number, reader, far_writer), self.pump(number, far_reader, writer))


async def main() -> None:
    waiting = []
    for name, port, host, far_port in (word.split(":") for word in sys.argv[1:]):
        link = Link(name, host, int(far_port))
        await asyncio.start_server(link.serve, HOST, int(port))
        waiting.append(link.watch())
    await asyncio.gather(*waiting)


asyncio.run(main())
