"""The probe of a worker's container, in the four hard cases: busy, frozen, without its broker, connected but not consuming."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import docker
from kombu.utils.uuid import uuid

from celery_kit.operate.stacks.images import image
from testbed.servers.contract import secured
from testbed.stack import SESSION
from tests.harness.containers import LABEL
from tests.harness.waiting import until
from tests.integration.conftest import WAIT, Cell
from tests.integration.containers import ROLES, Worker
from tests.integration.test_control import command

SECONDS = int(ROLES["probed"]["HEARTBEAT_SECONDS"])

#: A way to the broker that a test can cut: forwards every connection, and ends them all when it is stopped.
LINK = """
import asyncio, sys
async def copy(source, target):
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.close()
async def forward(reader, writer):
    there = await asyncio.open_connection(sys.argv[2], int(sys.argv[1]))
    await asyncio.gather(copy(reader, there[1]), copy(there[0], writer), return_exceptions=True)
async def main():
    async with await asyncio.start_server(forward, "0.0.0.0", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""


#: Asks the image's own probe again and again, in the container: a `docker exec` for every question would cost far more than it.
ASK = """n=0
while n=$((n + 1)) && [ ! -e "$1.end" ]; do
    healthy; ready=$?; healthy live
    echo $n $ready $? > "$1.new" && mv "$1.new" "$1"
    sleep 0.2
done"""


class Probe:
    """What the health check of a worker's image says."""

    def __init__(self, worker: Worker, data: Path) -> None:
        name = f"probe-{uuid()}"
        self.file = data / name
        worker.docker.exec_run(["sh", "-c", ASK, "ask", f"/data/{name}"], detach=True)
        until("it is asked", self.file.exists, WAIT)

    def end(self) -> None:
        self.file.with_suffix(".end").touch()

    def says(self) -> tuple[bool, bool]:
        """Whether the worker is ready, and whether it is alive: an answer to a question that was asked after this call."""
        asked = self._last()[0]
        _, *codes = until("there is an answer", lambda: last if (last := self._last())[0] > asked + 1 else (), WAIT)
        assert {*codes} <= {0, 1}, codes
        return codes[0] == 0, codes[1] == 0

    def _last(self) -> tuple[int, ...]:
        return tuple(map(int, self.file.read_text().split()))


@contextmanager
def probed(cell: Cell, **environ: str) -> Iterator[tuple[Worker, str, Probe]]:
    """A worker for probes, healthy; its queue. One with an environment of its own is that test's alone."""
    with ExitStack() as stack:
        queue = f"health-{uuid()}" if environ else "probed"
        if environ:
            options = {**ROLES["probed"], "OPTIONS": f"-Q {queue} -c 1", **environ}
            worker = stack.enter_context(cell.running.beside("probed too", **options))
        else:
            worker = cell.running.worker("probed")
        probe = Probe(worker, cell.running.data)
        stack.callback(probe.end)
        until("it is healthy", lambda: probe.says() == (True, True), WAIT)
        yield worker, queue, probe


@contextmanager
def link(cell: Cell, name: str) -> Iterator[Any]:
    """A container of that name in the stack's network, which forwards to the broker."""
    to = [str(cell.running.server.port), cell.running.server.hosts[0]]
    network = cell.running.stack.network
    container: Any = docker.from_env().containers.run(
        image(cell.combination.pool.name), ["python", "-c", LINK, *to], detach=True, labels={LABEL: SESSION},
        name=name, hostname=name, network=network, healthcheck={"test": ["NONE"]}, init=True,
    )  # fmt: skip
    try:
        yield container
    finally:
        container.remove(force=True, v=True)


def test_probe_of_a_busy_worker(cell: Cell) -> None:
    """A worker is healthy during a task that takes longer than a sign of life may be old, whatever its loop does."""
    app = cell.running.app()  # of its own: see the limit `state_after_get`
    with probed(cell) as (_, queue, probe), app.connection_for_write():
        result = app.send_task("time_probes.nap", (3 * SECONDS,), queue=queue)
        until("it runs", lambda: result.state == "STARTED" or not cell.combination.backend.read_elsewhere, WAIT)
        seen = set()

        def ended() -> bool:
            seen.add(probe.says())
            return bool(result.ready())

        until("the task ended", ended, WAIT)
        assert seen == {(True, True)}
    app.close()


def test_probe_of_a_frozen_worker(cell: Cell) -> None:
    """A stopped worker is neither ready nor alive, at once; when it goes on it is healthy again."""
    with probed(cell) as (worker, _, probe):
        worker.docker.kill(signal="STOP")
        try:
            until("the probe sees it", lambda: probe.says() == (False, False), SECONDS)
        finally:
            worker.docker.kill(signal="CONT")
        until("it is healthy again", lambda: probe.says() == (True, True), WAIT)


def test_probe_of_a_worker_without_its_broker(cell: Cell) -> None:
    """A worker that lost its broker is not ready, but alive: to replace it would not help. With its broker it comes back."""
    name = f"link-{uuid()}"
    server = cell.running.server
    url = secured(server.url.format(host=name, port=server.port, namespace=cell.running.namespace), "/tls")
    with link(cell, name) as way, probed(cell, CELERY_BROKER_URL=url) as (_, queue, probe):
        way.kill()
        until("the probe sees it", lambda: probe.says() == (False, True), WAIT)
        way.start()
        assert cell.run("probes.add", 1, 2, queue=queue) == 3
        until("it is ready again", lambda: probe.says() == (True, True), WAIT)


def test_probe_of_a_worker_that_does_not_consume(cell: Cell) -> None:
    """A worker that is connected and takes nothing of what waits is to be replaced; one for which nothing waits is healthy."""
    with probed(cell) as (worker, queue, probe):
        node = f"probed@{worker.docker.short_id}"
        until("it hears", lambda: command(cell, node, "cancel_consumer", seconds=2, queue=queue), WAIT)
        assert probe.says() == (True, True)
        # The first may still answer a question that the worker had asked before.
        results = [cell.send("probes.add", 2, 2, queue=queue) for _ in range(2)]
        until("the probe sees it", lambda: probe.says() == (False, False), WAIT)
        assert f"not healthy: messages wait, and for {SECONDS} s this worker took none" in worker.logs()
        command(cell, node, "add_consumer", queue=queue)
        assert [result.get(timeout=WAIT) for result in results] == [4, 4]
        until("it is healthy again", lambda: probe.says() == (True, True), WAIT)
